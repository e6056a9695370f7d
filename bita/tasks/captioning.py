"""Captions for images, scored against the dataset's references."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bita import distributed
from bita.batch import Batch
from bita.errors import UserError
from bita.models.base import BitaModel
from bita.models.bita_lm import BitaLM
from bita.models.generation import GenerationSettings
from bita.schema import Config
from bita.tasks.base import Evaluation, SavePredictions, Task

if TYPE_CHECKING:
    from bita.datasets.captions import CaptionDataset


class CaptioningTask(Task):
    """Trains on the caption loss; evaluates by generating one caption an image (`run.num_beams` and its kin).

    The best epoch is the one with the highest CIDEr + Bleu_4, as published.
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.settings = replace(GenerationSettings.from_run(cfg.run), num_captions=1)

    def evaluate(
        self, model: BitaModel, dataset: CaptionDataset, batches: Iterable[Batch], save: SavePredictions
    ) -> Evaluation:
        """Caption every image once, over all processes; save; score on the main process (`run.report_metric`)."""
        assert isinstance(model, BitaLM), "captions need arch bita_opt"
        own = [
            {"image_id": image_id, "caption": captions[0]}
            for batch in batches
            for image_id, captions in zip(
                batch["image_id"], model.generate(batch["image"], self.settings), strict=True
            )
        ]
        predictions = merge(distributed.gather_objects(own), dataset)

        def score() -> dict[str, float]:
            save(predictions)
            return self._score(dataset, predictions) if self.cfg.run.report_metric else {}

        scores = distributed.on_main(score)
        return Evaluation(scores, scores["CIDEr"] + scores["Bleu_4"] if scores else None)

    def _score(self, dataset: CaptionDataset, predictions: list[dict[str, Any]]) -> dict[str, float]:
        from bita.metrics import score_captions

        hypotheses = {prediction["image_id"]: prediction["caption"] for prediction in predictions}
        references = {image_id: dataset.references[image_id] for image_id in hypotheses}
        return dict(score_captions(references, hypotheses).overall)


def merge(parts: list[list[dict[str, Any]]], dataset: CaptionDataset) -> list[dict[str, Any]]:
    """The predictions of all processes, ordered by image id.

    Raises:
        UserError: an image of the split has no prediction, or two.
    """
    merged = sorted((entry for part in parts for entry in part), key=lambda entry: entry["image_id"])
    found = [entry["image_id"] for entry in merged]
    expected = sorted({record.image_id for record in dataset.records})
    if found != expected:
        twice = len(found) - len(set(found))
        missing = len(set(expected) - set(found))
        raise UserError(
            f"{dataset.name} {dataset.split}: {missing} of {len(expected)} images have no caption and {twice} have "
            "two; the processes did not share the split as they should"
        )
    return merged
