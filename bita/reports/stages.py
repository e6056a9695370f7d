"""A run and those that it started from, stage by stage: what their logs say of training."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bita.files import user_path
from bita.reports import figures
from bita.reports.split import Run

V = TypeVar("V")

SHOWN = (("CIDEr",), ("Bleu_4", "METEOR", "ROUGE_L"), ("mean_recall", "i2t_recall@1", "t2i_recall@1"))
"""Scores of a validation that are drawn, a plot for each group."""


@dataclass
class Log:
    """What `log.jsonl` says of a training that may have been interrupted.

    Attributes:
        training: name of a value → step → value.
        scores: split → step → name of a score → value.
    """

    training: dict[str, dict[int, float]] = field(default_factory=dict)
    scores: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Log:
        """Read a log; what was trained again after an interruption counts as it was the last time."""
        log = cls()
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for line in text.splitlines():
            try:
                log._add(json.loads(line))
            except (ValueError, KeyError, AttributeError, TypeError):  # a line that was cut off
                continue
        return log

    def _add(self, entry: dict[str, Any]) -> None:
        if entry["event"] == "resumed":
            until = entry["step"]
            self.training = {name: _until(until, values) for name, values in self.training.items()}
            self.scores = {name: _until(until, values) for name, values in self.scores.items()}
        elif entry["event"] == "train":
            for name, value in entry.items():
                if name not in ("time", "event", "step"):
                    self.training.setdefault(name, {})[entry["step"]] = float(value)
        elif entry["event"] == "scores":
            self.scores.setdefault(entry["split"], {})[entry["step"]] = entry["scores"]


def _until(step: int, values: dict[int, V]) -> dict[int, V]:
    return {k: value for k, value in values.items() if k <= step}


def stages(run: Run) -> list[Run]:
    """Return a run after those that it started from, as far as they are still there."""
    found = [run]
    while (before := _before(found[0])) is not None and before.folder not in {
        stage.folder for stage in found
    }:
        found.insert(0, before)
    return found


def _before(run: Run) -> Run | None:
    source, written_to = run.cfg.model.init_from, run.cfg.run.output_dir
    if not source:
        return None
    beside = run.folder.parent / os.path.relpath(user_path(source), user_path(written_to))
    for place in (beside, user_path(source)):  # runs that were moved together lie beside each other as before
        for folder in (place, place.resolve().parent.parent):  # a run, or a checkpoint in its checkpoints/
            if Run.is_at(folder):
                return Run.open(folder)
    return None


def described(stage: Run) -> dict[str, Any]:
    """Return what a page says of a stage: its name, its task, its validations, plots of its log."""
    log = Log.read(stage.folder / "log.jsonl")
    panels: dict[str, Mapping[str, figures.Curve]] = {}
    losses = {name: curve for name, curve in log.training.items() if name.endswith("loss")}
    drawn = {f"{name}, training": _curve(curve) for name, curve in losses.items()}
    tests = {"test", *(name for name in log.scores if name.startswith("test_"))}
    validations = {split: of for split, of in log.scores.items() if split not in tests}
    for split, of in validations.items():
        if any("loss" in scores for scores in of.values()):
            drawn[f"loss, {split}"] = _curve({step: s["loss"] for step, s in of.items() if "loss" in s})
    if drawn:
        panels["loss"] = drawn
    if "lr" in log.training:
        panels["learning rate"] = {"lr": _curve(log.training["lr"])}
    for group in SHOWN:
        validated = {
            name: curve for name, curve in _validated(validations, group).items() if len(curve[0]) > 1
        }
        if validated:
            panels[f"{', '.join(group)}, validation"] = validated
    return {
        "name": stage.name,
        "task": stage.cfg.run.task,
        "epochs": 0 if stage.cfg.run.evaluate else stage.cfg.run.max_epoch,
        "figures": [figures.curves(title, named) for title, named in panels.items()],
        "scores": {split: of[max(of)] for split, of in log.scores.items() if of},
    }


def _validated(
    validations: Mapping[str, Mapping[int, Mapping[str, float]]], group: Sequence[str]
) -> dict[str, figures.Curve]:
    """Name of a score, and split where there are several → its curve."""
    return {
        name if len(validations) == 1 else f"{name}, {split}": _curve(
            {step: scores[name] for step, scores in of.items() if name in scores}
        )
        for split, of in validations.items()
        for name in group
    }


def _curve(values: Mapping[int, float]) -> figures.Curve:
    return sorted(values), [values[step] for step in sorted(values)]
