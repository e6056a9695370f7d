import json
import math
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_run import toy_config, toy_model, toy_runner

from bita.checkpoint import list_checkpoints, read_meta
from bita.errors import UserError
from bita.runners.interrupt import Interrupted
from bita.runners.stepper import Stepper
from bita.tasks.pretrain import PretrainTask


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


def weights(run_dir: Path, epoch: int) -> bytes:
    return (run_dir / "checkpoints" / f"epoch_{epoch:04d}" / "model.safetensors").read_bytes()


def events(run_dir: Path, kind: str) -> list[dict]:
    lines = (run_dir / "log.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


class StopHere(Exception):
    pass


def interrupt_after(runner, step: int) -> None:
    """Let the runner break, without saving, after `step` steps."""
    after_step = runner.after_step

    def wrapped(size, bar):
        after_step(size, bar)
        if runner.step >= step:
            raise StopHere

    runner.after_step = wrapped


EXACT = {
    "plain": {},
    "accumulation": {"accum_grad_iters": 4, "clip_grad_norm": 0.5},
    "workers": {"num_workers": 2, "model__arch": "bita_former"},
    "features": {"cache_features": 2, "model__freeze_vit": True},
}


@pytest.mark.parametrize("options", EXACT.values(), ids=EXACT)
def test_resumed_run_equals_the_uninterrupted_one_byte_by_byte(tmp_path, images, options):
    options = {"name": "run", "save_every_steps": 2, "valid_splits": ["val"]} | options
    whole = toy_runner(toy_config(tmp_path / "whole", **options), images)
    whole.train()
    for stop in (3, 9):  # in the middle of the first epoch, then of the second
        broken = toy_runner(toy_config(tmp_path / "broken", resume="auto", **options), images)
        interrupt_after(broken, stop)
        with pytest.raises(StopHere):
            broken.train()
        broken.run_dir.lock.close()
    resumed = toy_runner(toy_config(tmp_path / "broken", resume="auto", **options), images)
    resumed.train()
    for name in ("model.safetensors", "trainer.pt"):
        ends = [runner.run_dir.checkpoints / "epoch_0002" / name for runner in (whole, resumed)]
        assert ends[0].read_bytes() == ends[1].read_bytes()
    starts = [event["step"] for event in events(resumed.run_dir.path, "resumed")]
    assert len(starts) == 2
    assert all(step > 0 for step in starts)
    assert (whole.run_dir.path / "validation.json").read_bytes() == (
        resumed.run_dir.path / "validation.json"
    ).read_bytes()


def test_validation_chooses_the_best_which_is_tested_at_the_end(tmp_path, images):
    cfg = toy_config(
        tmp_path,
        max_epoch=4,
        keep_last=1,
        valid_splits=["val"],
        test_splits=["test"],
        init_lr=0.0,
        warmup_lr=0.0,
    )
    runner = toy_runner(cfg, images)
    evaluate, losses = runner.evaluate_splits, iter([3.0, 1.0, 2.0, 1.0])

    def pretended(splits, suffix=""):
        results = evaluate(splits, suffix)
        if splits == ["val"]:
            object.__setattr__(results["val"], "quality", -next(losses))
        return results

    runner.evaluate_splits = pretended
    scores = runner.train()
    checkpoints = runner.run_dir.checkpoints
    assert (checkpoints / "best").resolve().name == "epoch_0002"
    assert (checkpoints / "last").resolve().name == "epoch_0004"
    assert [folder.name for folder in list_checkpoints(checkpoints)] == ["epoch_0004", "epoch_0002"]
    assert json.loads((runner.run_dir.path / "scores.json").read_text()) == scores
    assert scores["test"]["loss"] > 0
    assert read_meta(checkpoints / "epoch_0004").best == {"epoch": 2, "quality": -1.0}
    best = load_file(checkpoints / "best" / "model.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in runner.model.checkpoint_state().items())


def test_validates_every_nth_epoch_and_the_last(tmp_path, images):
    runner = toy_runner(toy_config(tmp_path, max_epoch=5, validate_every=2, valid_splits=["val"]), images)
    runner.train()
    assert list(json.loads((runner.run_dir.path / "validation.json").read_text())) == ["2", "4", "5"]


def test_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(tmp_path, images):
    options = {"name": "run", "keep_last": 3, "valid_splits": ["val"], "max_epoch": 3}
    toy_runner(toy_config(tmp_path / "whole", **options), images).train()
    first = toy_runner(toy_config(tmp_path / "broken", **options), images)
    first.train()
    first.run_dir.lock.close()
    for epoch in (2, 3):
        damaged = first.run_dir.checkpoints / f"epoch_{epoch:04d}" / "trainer.pt"
        damaged.write_bytes(damaged.read_bytes()[:-5])
    again = toy_runner(toy_config(tmp_path / "broken", resume="auto", **options), images)
    again.train()
    assert [event["step"] for event in events(again.run_dir.path, "resumed")] == [6]
    assert weights(again.run_dir.path, 3) == weights(tmp_path / "whole/run", 3)


def test_checkpoint_of_another_architecture_is_refused_in_one_line(tmp_path, images):
    first = toy_runner(toy_config(tmp_path, name="first"), images)
    first.train()
    other = toy_runner(
        toy_config(tmp_path, resume=str(first.run_dir.path), model__arch="bita_former"), images
    )
    with pytest.raises(UserError, match="another architecture") as caught:
        other.train()
    assert "epoch_0002" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_alone_cannot_be_resumed_from(tmp_path, images):
    weights_file = tmp_path / "checkpoint_best.pth"
    torch.save({"model": {}}, weights_file)
    runner = toy_runner(toy_config(tmp_path, resume=str(weights_file)), images)
    with pytest.raises(UserError, match=r"set model\.init_from instead"):
        runner.train()


def test_resume_with_another_seed_warns(tmp_path, images, capsys):
    toy_runner(toy_config(tmp_path, name="run", max_epoch=1), images).train()
    cfg = toy_config(tmp_path, resume=str(tmp_path / "run"), max_epoch=2, seed=7)
    toy_runner(cfg, images).train()
    out = capsys.readouterr().out
    assert "run.seed (42 then, 7 now)" in out
    assert "run.max_epoch (1 then, 2 now)" in out


def test_going_on_in_a_new_folder_keeps_the_best_so_far(tmp_path, images):
    options = {"keep_last": 1, "valid_splits": ["val"], "init_lr": 0.0, "warmup_lr": 0.0}
    first = toy_runner(toy_config(tmp_path / "first", name="run", max_epoch=3, **options), images)
    first.train()  # nothing is learnt, so the first epoch stays the best
    last = first.run_dir.checkpoints / "last"
    second = toy_runner(toy_config(tmp_path / "second", resume=str(last), max_epoch=5, **options), images)
    second.train()
    checkpoints = second.run_dir.checkpoints
    assert (checkpoints / "best").resolve() == (checkpoints / "epoch_0001").resolve()
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best", "epoch_0001", "epoch_0005", "last"]
    validated = [
        json.loads((runner.run_dir.path / "validation.json").read_text()) for runner in (first, second)
    ]
    assert list(validated[1]) == ["1", "2", "3", "4", "5"]
    assert validated[0].items() <= validated[1].items()


def test_another_batch_size_goes_on_at_the_same_share_of_the_epoch(tmp_path, images, capsys):
    options = {"name": "run", "save_every_steps": 2}
    first = toy_runner(toy_config(tmp_path / "first", **options), images)
    interrupt_after(first, 4)  # of 6 steps of 2
    with pytest.raises(StopHere):
        first.train()
    cfg = toy_config(tmp_path / "second", batch_size_train=4, resume=str(first.run_dir.path), **options)
    second = toy_runner(cfg, images)
    second.prepare()
    assert (second.epoch, second.step_in_epoch, second.steps_per_epoch) == (0, 2, 3)
    assert "run.batch_size_train (2 then, 4 now)" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_where_it_stands_and_asks_to_be_started_again(tmp_path, images, number):
    options = {"name": "run", "max_epoch": 1}
    whole = toy_runner(toy_config(tmp_path / "whole", **options), images)
    whole.train()
    runner = toy_runner(toy_config(tmp_path / "broken", **options), images)
    train_step, calls = runner.task.train_step, []

    def signalled(model, batch):
        calls.append(None)
        if len(calls) == 3:
            signal.raise_signal(number)
        return train_step(model, batch)

    runner.task.train_step = signalled
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=rf"stopped by {number.name}") as caught:
        runner.train()
    assert caught.value.exit_code == 75
    assert signal.getsignal(number) is before
    assert (runner.run_dir.checkpoints / "last").resolve().name == "epoch_0001_step_000003"
    runner.run_dir.lock.close()
    resumed = toy_runner(toy_config(tmp_path / "broken", resume="auto", **options), images)
    resumed.train()
    assert weights(resumed.run_dir.path, 1) == weights(whole.run_dir.path, 1)


def poisoned(runner, steps: set[int]) -> None:
    train_step, calls = runner.task.train_step, []

    def wrapped(model, batch):
        output = train_step(model, batch)
        if len(calls) in steps:
            output["loss"] = output["loss"] * math.nan
        calls.append(None)
        return output

    runner.task.train_step = wrapped


def test_step_with_a_loss_that_is_not_finite_is_left_out(tmp_path, images):
    runner = toy_runner(toy_config(tmp_path, max_epoch=1, save_every_steps=1, keep_last=9), images)
    poisoned(runner, {2})
    runner.train()
    folders = [runner.run_dir.checkpoints / f"epoch_0001_step_{step:06d}" for step in (2, 3, 4)]
    before, left_out, after = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert before == left_out != after
    assert all(torch.isfinite(tensor).all() for tensor in runner.model.state_dict().values())
    (warning,) = events(runner.run_dir.path, "warning")
    assert "step 2: loss or gradient not finite" in warning["text"]
    assert all(
        math.isfinite(event["loss"]) for event in events(runner.run_dir.path, "train") if event["step"] != 3
    )


def test_too_many_bad_steps_in_a_row_stop_the_run_and_name_images_and_checkpoint(tmp_path, images):
    runner = toy_runner(toy_config(tmp_path, max_epoch=2, max_bad_steps=3, log_freq=1), images)
    poisoned(runner, {1, 3, 4, 7, 8, 9})
    with pytest.raises(UserError, match="of 3 steps in a row was not finite") as caught:
        runner.train()
    assert str(runner.run_dir.checkpoints / "epoch_0001") in str(caught.value)
    assert "images toy train 10" in str(caught.value)


def test_disk_full_during_a_save_costs_nothing_but_that_checkpoint(tmp_path, images, monkeypatch):
    from bita.runners import state

    write, calls = state.write_checkpoint, []

    def sometimes_full(parent, meta, writers):
        calls.append(meta.name)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return write(parent, meta, writers)

    monkeypatch.setattr(state, "write_checkpoint", sometimes_full)
    runner = toy_runner(toy_config(tmp_path, max_epoch=3, valid_splits=["val"]), images)
    runner.train()
    assert calls == ["epoch_0001", "epoch_0002", "epoch_0003"]
    (warning,) = events(runner.run_dir.path, "warning")
    assert "No space left on device" in warning["text"]
    assert "epoch_0001" in warning["text"]
    assert (runner.run_dir.checkpoints / "best").resolve().name == "epoch_0003"


def test_accumulated_gradient_is_the_mean_over_the_group(tmp_path, images):
    cfg = toy_config(tmp_path, accum_grad_iters=2)
    cfg.model.bridge_size.dropout = 0.0
    cfg.model.opt_config |= {"dropout": 0.0}
    runner = toy_runner(cfg, images)
    batches = list(runner.prepare() or runner.loader)[:2]
    gradients = []
    for batch in batches:
        model = toy_model(cfg)
        model.train()(batch)["loss"].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    stepper = Stepper(toy_model(cfg), PretrainTask(cfg), cfg.run, torch.device("cpu"))
    for number, batch in enumerate(batches):
        stepper.accumulate(batch, share=0.5, last=number == 1)
    for name, parameter in stepper.net.named_parameters():
        if parameter.grad is not None:
            expected = (gradients[0][name] + gradients[1][name]) / 2
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-7)


def test_rate_of_a_group_is_that_of_its_last_step(tmp_path, images):
    runner = toy_runner(
        toy_config(tmp_path, max_epoch=1, accum_grad_iters=4, warmup_steps=10, log_freq=4), images
    )
    runner.train()
    expected = [runner.schedule.lr_at(0, 3), runner.schedule.lr_at(0, 5)]
    assert [event["lr"] for event in events(runner.run_dir.path, "train")] == expected


def test_the_best_epoch_is_by_the_scores_that_are_named(tmp_path):
    options = {"model__arch": "bita_former", "valid_splits": ["val"], "max_epoch": 1}
    by = ["i2t_recall@1", "loss"]
    toy_runner(toy_config(tmp_path, best_by=by, **options), tmp_path / "images").train()
    (entry,) = json.loads((tmp_path / "latest/validation.json").read_text()).values()
    assert entry["best_by"] == by
    assert entry["quality"] == entry["scores"]["val"]["i2t_recall@1"] - entry["scores"]["val"]["loss"]
    cfg = toy_config(tmp_path / "other", best_by=["i2t_recall@2"], **options)
    with pytest.raises(
        UserError, match=r"^run\.best_by: unknown score 'i2t_recall@2'; did you mean 'i2t_rec"
    ):
        toy_runner(cfg, tmp_path / "images").train()
