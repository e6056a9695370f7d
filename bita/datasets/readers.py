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
from bita.datasets.shards import ShardDataset
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

    def __init__(
        self, datasets: Sequence[CaptionDataset | ShardDataset], seed: int, device: torch.device
    ) -> None:
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
        if self.cached:
            return self._read_cached(keys)
        images: list[Tensor] = []
        texts: list[str] = []
        ids: list[int] = []
        for key in keys:
            dataset, _, index, generator = self._locate(key)
            image, captions, image_id = dataset.drawn(index, generator)
            texts += [dataset.processors.train_text(caption) for caption in captions]
            ids += [image_id] * len(captions)
            images += [dataset.processors.train_image(image, generator) for _ in captions]
        return {"image": torch.stack(images), "text": texts, "image_id": ids}

    def _locate(self, key: TrainKey) -> tuple[CaptionDataset | ShardDataset, int, int, torch.Generator]:
        """Return a key's dataset, that dataset's number, the index in it, and the generator of its draws."""
        place, epoch, position = key
        number = bisect.bisect_right(self.offsets, place) - 1
        return self.datasets[number], number, place - self.offsets[number], seeded(self.seed, epoch, position)

    def _read_cached(self, keys: Sequence[TrainKey]) -> Batch:
        """Return the batch of ``keys`` from the caches."""
        texts: list[str] = []
        ids: list[int] = []
        picked: list[tuple[int, int, torch.Generator]] = []
        for key in keys:
            dataset, number, index, generator = self._locate(key)
            assert isinstance(dataset, CaptionDataset)
            for record in dataset.draw(index, generator):
                texts.append(dataset.processors.train_text(dataset.records[record].caption))
                ids.append(dataset.records[record].image_id)
                picked.append((number, record, generator))
        return {"image": self._augment(picked), "text": texts, "image_id": ids}

    def _augment(self, picked: Sequence[tuple[int, int, torch.Generator]]) -> Tensor:
        """Augment cached images, dataset by dataset; returns (B, 3, S, S) in the order of ``picked``."""
        parts: dict[int, list[int]] = {}
        for place, (number, _, _) in enumerate(picked):
            parts.setdefault(number, []).append(place)
        images: list[Tensor] = []
        for number, places in parts.items():
            dataset = self.datasets[number]
            processor = dataset.processors.train_image
            assert isinstance(dataset, CaptionDataset)
            assert isinstance(processor, TrainImageProcessor)
            pixels = dataset.cached_pixels([picked[place][1] for place in places])
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
