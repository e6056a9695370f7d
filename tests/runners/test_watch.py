import math

import pytest
import torch

from bita.runners.watch import StepWatch


def window(watch: StepWatch, step: int, loss: float):
    watch.add(step, [{"loss": torch.tensor(loss)}], torch.tensor(1.0), [step])
    return watch.fetch()


def test_loss_that_jumps_is_told_by_how_much_and_a_quiet_one_is_not():
    watch = StepWatch()
    assert [window(watch, step, 1.0 + step / 100).spike for step in range(10)] == [None] * 10
    assert window(watch, 10, 5.225).spike == pytest.approx(5.0)  # the median of the ten is 1.045
    assert window(watch, 11, 1.1).spike is None


def test_a_loss_below_zero_is_no_jump():
    watch = StepWatch()
    assert [window(watch, step, -2.0 + step / 100).spike for step in range(10)] == [None] * 10


def test_bad_loss_is_no_part_of_the_mean_and_counts_in_a_row():
    watch = StepWatch()
    for step, loss in enumerate((2.0, math.nan, math.inf)):
        watch.add(step, [{"loss": torch.tensor(loss)}], torch.tensor(loss), [100 + step])
    seen = watch.fetch()
    assert seen.means["loss"] == 2.0
    assert [(bad.step, bad.image_ids) for bad in seen.bad] == [(1, [101]), (2, [102])]
    assert seen.bad_in_a_row == 2
    for step, loss in enumerate(
        (math.nan, 2.0)
    ):  # three in a row, and the next one good: they are not forgotten
        watch.add(step, [{"loss": torch.tensor(loss)}], torch.tensor(loss), [100 + step])
    assert watch.fetch().bad_in_a_row == 3
    assert window(watch, 3, 1.0).bad_in_a_row == 0
