"""What a task is: batch → loss in training, split → scores in evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bita.batch import Batch, on_device
from bita.config.schema import Config
from bita.models.base import BitaModel
from bita.registry import tasks

if TYPE_CHECKING:
    from bita.datasets.captions import CaptionDataset, Split

Save = Callable[[str, Any], None]
"""save(KIND, VALUE) writes `results/SPLITKIND.json`; on the main process. Predictions have the kind ""."""


@dataclass(frozen=True)
class Evaluation:
    """What a split came to.

    Attributes:
        scores: name → value.
        quality: what the best epoch is chosen by, higher is better; None when there is nothing to choose by.
        notes: what a reader of the scores should know, one line each.
    """

    scores: dict[str, float] = field(default_factory=dict)
    quality: float | None = None
    notes: list[str] = field(default_factory=list)


class Task(ABC):
    """One way to train and to evaluate a model.

    Args:
        cfg: the resolved configuration.

    Attributes:
        args: own keys (`run.task_args`).
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg, self.args = cfg, cfg.run.task_args

    def begin(self, datasets: Sequence[Split]) -> None:  # noqa: B027
        """Look at the training sets, in the order in which batches number them; before the first step."""

    def train_step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the batch's `loss` (with gradient) and further scalars to log."""
        output: dict[str, Tensor] = model(batch)
        return output

    def quality(self, scores: Mapping[str, float]) -> float | None:
        """The sum of the scores in `run.best_by`, or of those that the task's keys name; losses count the other way.

        None where one of them is not there.
        """
        names = self.cfg.run.best_by or tasks.config(self.cfg.run.task).best_by
        if not names or any(name not in scores for name in names):
            return None
        return sum(-scores[name] if name.endswith("loss") else scores[name] for name in names)

    def search(self) -> dict[str, Any]:
        """Return what decides, beside the weights, which captions an evaluation finds; nothing where it finds none."""
        return {}

    @abstractmethod
    def evaluate(
        self, model: BitaModel, dataset: CaptionDataset, batches: Iterable[Batch], save: Save
    ) -> Evaluation:
        """Evaluate on one split; every process calls this and gets the same answer.

        Args:
            model: on its device, in evaluation mode.
            dataset: the whole split.
            batches: this process's share of its images, one record each, on the device.
            save: writes what the task wants kept beside the scores, such as predictions.
        """


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its images on `device`, see `on_device`."""
    moved = batch.copy()
    if "image" in batch:
        moved["image"] = on_device(batch["image"], device)
    if "tokens" in batch:
        moved["tokens"] = on_device(batch["tokens"], device)
    return moved
