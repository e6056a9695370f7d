import json
import math
from dataclasses import dataclass

import pytest

from bita.registry import loggers
from bita.runners.loggers import Logger
from bita.runners.run_log import RunLog
from bita.runners.validations import Validations


@pytest.fixture
def broken(forgotten):
    """A logger of one's own that fails at every event."""

    @loggers.register("broken")
    class Broken(Logger):
        @dataclass(kw_only=True)
        class Config:
            where: str

        def event(self, kind, values):
            raise ConnectionError(f"{self.config.where} does not answer\nat all")

    return loggers.config("broken")(where="host")


def test_the_usual_loggers_write_lines_and_curves(tmp_path):
    log = RunLog(tmp_path, {})
    log.event("started", text="é")
    log.scalars({"train/loss": 1.0}, 3)
    log.close()
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line).items() >= {"event": "started", "text": "é"}.items()
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_logger_that_fails_is_said_and_the_others_go_on(tmp_path, broken, capsys):
    log = RunLog(tmp_path, {"broken": broken, "jsonl": loggers.config("jsonl")()})
    log.event("started")
    log.close()
    said = capsys.readouterr().out
    assert said == "warning: logger broken: cannot write (ConnectionError: host does not answer at all)\n"
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "tensorboard").exists()


def test_epochs_that_other_scores_judged_are_never_the_best(tmp_path):
    before = Validations(tmp_path, ["CIDEr"])
    before.add(0, 9.0, {"val": {"CIDEr": 9.0}})
    now = Validations(tmp_path, ["METEOR"], entries=before.entries)
    now.add(1, 0.3, {"val": {"METEOR": 0.3}})
    for epoch in (1, 2):
        (tmp_path / f"checkpoints/epoch_000{epoch}").mkdir(parents=True)
        (tmp_path / f"checkpoints/epoch_000{epoch}/meta.json").write_text("{}")
    assert (before.best(), now.best()) == (0, 1)
    assert now.as_json()["2"] == {"quality": 0.3, "best_by": ["METEOR"], "scores": {"val": {"METEOR": 0.3}}}


def test_epochs_of_another_search_or_other_splits_are_never_the_best(tmp_path):
    for epoch in (1, 2, 3):
        (tmp_path / f"checkpoints/epoch_000{epoch}").mkdir(parents=True)
        (tmp_path / f"checkpoints/epoch_000{epoch}/meta.json").write_text("{}")
    greedy = Validations(tmp_path, ["CIDEr"], {"num_beams": 1})
    greedy.add(0, 3.0, {"val": {"CIDEr": 3.0}})
    beams = Validations(tmp_path, ["CIDEr"], {"num_beams": 5}, entries=dict(greedy.entries))
    beams.add(1, 2.0, {"val": {"CIDEr": 2.0}})
    assert (greedy.best(), beams.best()) == (0, 1)
    assert beams.entries[1]["search"] == {"num_beams": 5}
    del beams.entries[0]["search"]  # of before it was noted
    assert beams.best() == 0
    beams.add(2, 1.0, {"val_a": {"CIDEr": 1.0}, "val_b": {"CIDEr": 1.0}})
    assert beams.best() == 2


def test_an_epoch_whose_quality_is_no_number_is_never_the_best(tmp_path):
    kept = Validations(tmp_path, ["loss"])
    for epoch, quality in enumerate((math.nan, -1.0, -math.inf)):
        (tmp_path / f"checkpoints/epoch_000{epoch + 1}").mkdir(parents=True)
        (tmp_path / f"checkpoints/epoch_000{epoch + 1}/meta.json").write_text("{}")
        kept.add(epoch, quality, {"val": {"loss": -quality}})
    assert kept.best() == 1


@pytest.mark.parametrize("content", ["{", "[1]", '{"one": {}}', '{"1": 3}', '{"1": {}}', ""])
def test_a_damaged_file_of_validations_is_passed_over(tmp_path, content):
    (tmp_path / "validation.json").write_text(content)
    kept = Validations(tmp_path, ["CIDEr"])
    kept.load(until=5)
    assert kept.best() is None
    kept.add(1, 0.5, {"val": {"CIDEr": 0.5}})
    assert kept.best() is None  # its checkpoint is not there
