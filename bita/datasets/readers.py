"""From keys to batches: what a loader's worker, or the main process, does for one step.

Letters: I images, H rows, W columns, S the processors' image size.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bita.batch import Batch, on_device
from bita.datasets.captions import IDS_OF_A_DATASET, CaptionDataset, Split, seeded
from bita.datasets.faults import BadRecord, Failure, Whereabouts, share
from bita.errors import UserError
from bita.processors.image import EvalImageProcessor, TrainImageProcessor
from bita.processors.rgb import grey

K = TypeVar("K")
TrainKey = tuple[int, int, int]
"""(place in the concatenation of the datasets, epoch, position in the epoch's order)."""


Read = tuple[Batch, list[BadRecord]]
"""A batch, and the records that were to be in it and did not open."""

TRIES = 20
"""So many records that do not open one after the other are no broken images, but a folder that is gone."""


class Reader(Dataset[Read | Failure], Generic[K]):
    """Reads batches, each from the keys of one step; a broken image gives its message."""

    cached: bool
    """Whether images come from a file of decoded or encoded ones, so that no workers are needed."""
    whereabouts: Whereabouts

    def __getitem__(self, keys: Sequence[K]) -> Read | Failure:
        try:
            return _shared(self.read(keys))
        except UserError as error:
            return Failure(str(error))

    def read(self, keys: Sequence[K]) -> Read:
        """Read the batch of `keys`."""
        raise NotImplementedError


class TrainReader(Reader[TrainKey]):
    """Training batches: each record's crop and drawn captions depend on (seed, epoch, position) alone.

    With every dataset cached, images are augmented as one batch on `device`; otherwise one by one, from files.
    Where `skip` says so, a record that does not open is replaced by another of its dataset, which depends on
    (seed, epoch, position) too.
    """

    def __init__(
        self,
        datasets: Sequence[Split],
        seed: int,
        device: torch.device,
        *,
        skip: bool = False,
        workers: int = 0,
    ) -> None:
        self.datasets = list(datasets)
        self.seed = seed
        self.device = device
        self.skip = skip
        self.whereabouts = Whereabouts(workers, self.name)
        self.offsets = list(itertools.accumulate((len(dataset) for dataset in datasets), initial=0))
        self.encoded = all(dataset.features is not None for dataset in datasets)
        self.cached = self.encoded or all(
            dataset.cache is not None and type(dataset.processors.train_image) is TrainImageProcessor
            for dataset in datasets
        )

    def read(self, keys: Sequence[TrainKey]) -> Read:
        """Return the batch of `keys`; an image's drawn captions stand side by side and share its crop."""
        if self.cached:
            return self._read_cached(keys), []
        images: list[Tensor] = []
        texts: list[str] = []
        ids: list[int] = []
        bad: list[BadRecord] = []
        draws: list[int] = []
        for key in keys:
            self.whereabouts.note(key[0])
            dataset, number, index, generator = self._locate(key)
            (image, captions, image_number), generator = self._open(dataset, index, generator, key, bad)
            texts += [dataset.processors.train_text.draw(caption, generator) for caption in captions]
            ids += [number * IDS_OF_A_DATASET + image_number] * len(captions)
            images.append(dataset.processors.train_image.draw(image, generator))
            draws.append(_number(generator))
        return {"image": torch.stack(images), "text": texts, "image_id": ids, "draw": draws}, bad

    def _open(
        self,
        dataset: Split,
        index: int,
        generator: torch.Generator,
        key: TrainKey,
        bad: list[BadRecord],
    ) -> tuple[tuple[Image.Image, list[str], int], torch.Generator]:
        """Return record `index`, or where it does not open another one, with the generator of its draws."""
        _, epoch, position = key
        for attempt in range(1, TRIES + 1):
            try:
                return dataset.drawn(index, generator), generator
            except UserError as error:
                if not self.skip:
                    raise
                bad.append(BadRecord(dataset.name, dataset.split, index, dataset.where(index), str(error)))
            generator = seeded(self.seed, epoch, position, attempt)
            index = int(torch.randint(len(dataset), (), generator=generator))
        raise UserError(f"{bad[-1].problem}; so do {TRIES - 1} others of {dataset.name} {dataset.split}")

    def image_name(self, image_id: int) -> str:
        """Return how an image of a batch is called in its dataset's files, for messages."""
        number, image = divmod(image_id, IDS_OF_A_DATASET)
        return self.datasets[number].image_name(image)

    def name(self, place: int) -> str:
        """Return the name of a place in the concatenation of the datasets, for messages."""
        number = bisect.bisect_right(self.offsets, place) - 1
        dataset, index = self.datasets[number], place - self.offsets[number]
        return f"{dataset.name} {dataset.split} record {index} ({dataset.where(index)})"

    def _locate(self, key: TrainKey) -> tuple[Split, int, int, torch.Generator]:
        """Return a key's dataset, that dataset's number, the index in it, and the generator of its draws."""
        place, epoch, position = key
        number = bisect.bisect_right(self.offsets, place) - 1
        return self.datasets[number], number, place - self.offsets[number], seeded(self.seed, epoch, position)

    def _read_cached(self, keys: Sequence[TrainKey]) -> Batch:
        """Return the batch of `keys` from the caches."""
        texts: list[str] = []
        ids: list[int] = []
        picked: list[tuple[int, int, torch.Generator]] = []
        for key in keys:
            dataset, number, index, generator = self._locate(key)
            assert isinstance(dataset, CaptionDataset)
            drawn = dataset.draw(index, generator)
            for record in drawn:
                texts.append(dataset.processors.train_text.draw(dataset.records[record].caption, generator))
                ids.append(number * IDS_OF_A_DATASET + dataset.numbers[dataset.records[record].image_id])
            picked.append((number, drawn[0], generator))
        batch: Batch = {"text": texts, "image_id": ids}
        if self.encoded:
            batch["tokens"] = self._tokens(picked, turn=keys[0][1])
        else:
            batch["image"] = self._augment(picked)
        batch["draw"] = [_number(generator) for _, _, generator in picked]
        return batch

    def _tokens(self, picked: Sequence[tuple[int, int, torch.Generator]], turn: int) -> Tensor:
        """Read what was kept of images: (I, N, C) float16, the view whose turn it is."""
        found = []
        for number, record, _ in picked:
            dataset = self.datasets[number]
            assert isinstance(dataset, CaptionDataset)
            found.append(dataset.encoded(record, turn))
        return torch.cat(found)

    def _augment(self, picked: Sequence[tuple[int, int, torch.Generator]]) -> Tensor:
        """Augment cached images, dataset by dataset; returns (I, 3, S, S) in the order of `picked`."""
        parts: dict[int, list[int]] = {}
        for place, (number, _, _) in enumerate(picked):
            parts.setdefault(number, []).append(place)
        images: list[Tensor] = []
        for number, places in parts.items():
            dataset = self.datasets[number]
            processor = dataset.processors.train_image
            assert isinstance(dataset, CaptionDataset)
            assert type(processor) is TrainImageProcessor
            pixels = dataset.cached_pixels(
                [picked[place][1] for place in places], pinned=self.device.type == "cuda"
            )
            pixels = on_device(pixels, self.device)
            images.append(processor.batch(pixels, [picked[place][2] for place in places]))
        if len(images) == 1:
            return images[0]
        order = torch.tensor([place for places in parts.values() for place in places]).argsort()
        return torch.cat(images)[order.to(self.device, non_blocking=True)]


def _number(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


def _shared(read: Read) -> Read:
    """Return what was read, from a worker in shared memory; raises UserError where that is full."""
    for part in ("image", "tokens"):
        if part in read[0]:
            share(read[0][part])
    return read


class EvalReader(Reader[int]):
    """Evaluation batches: a list of records to their images and captions, through the eval processors.

    Where `skip` says so, an image that does not open is a grey one: every image is still evaluated once. With `kept`,
    what the encoder once said of the images stands in their place, where the dataset has it.
    """

    def __init__(
        self, dataset: CaptionDataset, *, skip: bool = False, workers: int = 0, kept: bool = False
    ) -> None:
        self.dataset = dataset
        self.skip = skip
        self.whereabouts = Whereabouts(workers, self.name)
        processor = dataset.processors.eval_image
        self.encoded = kept and dataset.eval_features is not None
        self.cached = self.encoded or (
            dataset.cache is not None
            and type(processor) is EvalImageProcessor
            and dataset.cache.size == processor.image_size
        )

    def read(self, keys: Sequence[int]) -> Read:
        """Read the batch of records."""
        chosen = [self.dataset.records[record] for record in keys]
        processors = self.dataset.processors
        bad: list[BadRecord] = []
        batch: Batch = {
            "text": [processors.eval_text(record.caption) for record in chosen],
            "image_id": [self.dataset.numbers[record.image_id] for record in chosen],
        }
        if self.encoded:
            batch["tokens"] = self.dataset.encoded_for_evaluation(keys)
        elif self.cached:
            assert type(processors.eval_image) is EvalImageProcessor
            batch["image"] = processors.eval_image.batch(self.dataset.cached_pixels(keys))
        else:
            batch["image"] = torch.stack([processors.eval_image(self._open(record, bad)) for record in keys])
        return batch, bad

    def _open(self, record: int, bad: list[BadRecord]) -> Image.Image:
        """Return a record's image, or a grey one."""
        self.whereabouts.note(record)
        try:
            return self.dataset.processors.eval_open.open(Path(self._where(record)))
        except UserError as error:
            if not self.skip:
                raise
            bad.append(
                BadRecord(self.dataset.name, self.dataset.split, record, self._where(record), str(error))
            )
            return grey()

    def name(self, record: int) -> str:
        """Return the name of a record, for messages."""
        return f"{self.dataset.name} {self.dataset.split} record {record} ({self._where(record)})"

    def _where(self, record: int) -> str:
        return str(self.dataset.folder / self.dataset.records[record].image)
