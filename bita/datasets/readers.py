"""From keys to batches: what a loader's worker, or the main process, does for one step.

Letters: B images, H rows, W columns, S the processors' image size.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bita.batch import Batch
from bita.datasets.captions import CaptionDataset, seeded
from bita.errors import UserError
from bita.processors.image import EvalImageProcessor, TrainImageProcessor

TrainKey = tuple[int, int, int]
"""(place in the concatenation of the datasets, epoch, position in the epoch's order)."""


@dataclass(frozen=True)
class Failure:
    """What a worker hands over in place of a batch, so that its message stays one line."""

    message: str


class TrainReader(Dataset[Batch | Failure]):
    """Training batches: each record's crop and drawn captions depend on (seed, epoch, position) alone.

    With every dataset cached, images are augmented as one batch on ``device``; otherwise one by one, from files.
    """

    def __init__(self, datasets: Sequence[CaptionDataset], seed: int, device: torch.device) -> None:
        self.datasets = list(datasets)
        self.seed = seed
        self.device = device
        self.offsets = list(itertools.accumulate((len(dataset) for dataset in datasets), initial=0))
        self.cached = all(
            dataset.cache is not None and isinstance(dataset.processors.train_image, TrainImageProcessor)
            for dataset in datasets
        )

    def __getitem__(self, keys: Sequence[TrainKey]) -> Batch | Failure:
        """Return the batch of ``keys``; a broken image gives the message."""
        try:
            return self.read(keys)
        except UserError as error:
            return Failure(str(error))

    def read(self, keys: Sequence[TrainKey]) -> Batch:
        """Return the batch of ``keys``; drawn captions of one image stand side by side, each with its own crop."""
        images: list[Tensor] = []
        texts: list[str] = []
        ids: list[int] = []
        picked: list[tuple[int, int, torch.Generator]] = []
        for place, epoch, position in keys:
            number = bisect.bisect_right(self.offsets, place) - 1
            dataset = self.datasets[number]
            generator = seeded(self.seed, epoch, position)
            records = dataset.draw(place - self.offsets[number], generator)
            texts += [dataset.processors.train_text(dataset.records[record].caption) for record in records]
            ids += [dataset.records[record].image_id for record in records]
            if self.cached:
                picked += [(number, record, generator) for record in records]
            else:
                image = dataset.open(records[0])
                images += [dataset.processors.train_image(image, generator) for _ in records]
        pixels = self._augment(picked) if self.cached else torch.stack(images)
        return {"image": pixels, "text": texts, "image_id": ids}

    def _augment(self, picked: Sequence[tuple[int, int, torch.Generator]]) -> Tensor:
        """Augment cached images, dataset by dataset; returns (B, 3, S, S) in the order of ``picked``."""
        parts: dict[int, list[int]] = {}
        for place, (number, _, _) in enumerate(picked):
            parts.setdefault(number, []).append(place)
        images: list[Tensor] = []
        for number, places in parts.items():
            processor = self.datasets[number].processors.train_image
            assert isinstance(processor, TrainImageProcessor)
            pixels = self.datasets[number].cached_pixels([picked[place][1] for place in places])
            images.append(processor.batch(pixels.to(self.device), [picked[place][2] for place in places]))
        if len(images) == 1:
            return images[0]
        order = torch.tensor([place for places in parts.values() for place in places]).argsort()
        return torch.cat(images)[order.to(self.device)]


class EvalReader(Dataset[Batch | Failure]):
    """Evaluation batches: a list of records to their images and captions, through the eval processors."""

    def __init__(self, dataset: CaptionDataset) -> None:
        self.dataset = dataset
        processor = dataset.processors.eval_image
        self.cached = (
            dataset.cache is not None
            and isinstance(processor, EvalImageProcessor)
            and dataset.cache.size == processor.image_size
        )

    def __getitem__(self, records: Sequence[int]) -> Batch | Failure:
        """Return the batch of ``records``; a broken image gives the message."""
        try:
            return self.read(records)
        except UserError as error:
            return Failure(str(error))

    def read(self, records: Sequence[int]) -> Batch:
        """Return the batch of ``records``."""
        chosen = [self.dataset.records[record] for record in records]
        processors = self.dataset.processors
        if self.cached:
            assert isinstance(processors.eval_image, EvalImageProcessor)
            images = processors.eval_image.batch(self.dataset.cached_pixels(records))
        else:
            images = torch.stack(
                [processors.eval_image(self.dataset.files.open(record.image)) for record in chosen]
            )
        return {
            "image": images,
            "text": [processors.eval_text(record.caption) for record in chosen],
            "image_id": [record.image_id for record in chosen],
        }
