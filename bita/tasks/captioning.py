"""Captions for images, scored against the dataset's references."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bita import distributed
from bita.batch import Batch
from bita.config.schema import Config
from bita.datasets.captions import seeded
from bita.errors import UserError
from bita.models.base import BitaModel
from bita.models.language.generation import GenerationSettings
from bita.tasks.base import Evaluation, Save, Task

if TYPE_CHECKING:
    from bita.datasets.captions import CaptionDataset


class CaptioningTask(Task):
    """Trains on the caption loss; evaluates by generating captions (`run.num_beams` and its kin).

    With `run.num_captions` above 1 all of an image's captions are in the results, under `candidates`, best first; the
    first is its caption and is scored.
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        if cfg.run.report_metric:
            from bita.metrics.java import find_java
            from bita.metrics.scorers import make_metrics

            find_java()  # what is missing is better found now than after the first epoch
            make_metrics(cfg.run.metrics)
        self.settings = GenerationSettings.from_run(cfg.run)

    def search(self) -> dict[str, Any]:
        """See `Task.search`."""
        return self.settings.search()

    def evaluate(
        self, model: BitaModel, dataset: CaptionDataset, batches: Iterable[Batch], save: Save
    ) -> Evaluation:
        """Caption every image once, over all processes; save; score on the main process (`run.report_metric`)."""
        own = [
            {"image_id": dataset.own_id(number), "caption": captions[0]}
            | ({"candidates": captions} if self.settings.num_captions > 1 else {})
            for batch in batches
            for number, captions in zip(batch["image_id"], self._write(model, batch), strict=True)
        ]
        predictions = merge(distributed.gather_objects(own), dataset)

        def score() -> Evaluation:
            save("", predictions)  # before scoring, which may fail where Java is missing
            return self._score(dataset, predictions, save) if self.cfg.run.report_metric else Evaluation()

        return distributed.on_main(score)

    def _write(self, model: BitaModel, batch: Batch) -> list[list[str]]:
        """Captions for each image of a batch; drawn ones by `run.seed` and the image's id alone."""
        generators = [seeded(self.cfg.run.seed, image_id) for image_id in batch["image_id"]]
        if "tokens" not in batch:
            return model.generate(batch["image"], self.settings, generators)
        found = model.candidates(batch["tokens"], self.settings, generators)
        return [[candidate.text for candidate in captions] for captions in found]

    def _score(self, dataset: CaptionDataset, predictions: list[dict[str, Any]], save: Save) -> Evaluation:
        from bita.metrics import score_captions

        spice = Path(self.cfg.env.spice_dir) if self.cfg.env.spice_dir else None

        hypotheses = {prediction["image_id"]: prediction["caption"] for prediction in predictions}
        references = {image_id: dataset.references.get(image_id, []) for image_id in hypotheses}
        scores = score_captions(
            references,
            hypotheses,
            spice_dir=spice,
            metrics=self.cfg.run.metrics or None,
            images={record.image_id: dataset.folder / record.image for record in dataset.records},
        )
        save("_scores", scores.to_json())
        return Evaluation(dict(scores.overall), self.quality(scores.overall), scores.notes)


def merge(parts: list[list[dict[str, Any]]], dataset: CaptionDataset) -> list[dict[str, Any]]:
    """Return the predictions of all processes, ordered by image id.

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
