"""One caption dataset: records of {image, caption, image_id}, their images, and the references of every image.

Letters: B records, H rows, W columns, S the processors' image size, n captions of one image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bita.datasets.annotations import CaptionRecord, captions_by_image
from bita.datasets.cache import FeatureCache, PixelCache
from bita.processors.image import ImageProcessor
from bita.processors.rgb import ImageOpener
from bita.processors.text import TextProcessor
from bita.records import Id

T = TypeVar("T")
IDS_OF_A_DATASET = 10**12
"""Training batches tell images of datasets apart: the k-th dataset's numbers, from 0, are k times this higher."""


@dataclass(frozen=True)
class Processors:
    """What turns image files into pictures, pictures into tensors, and captions into texts."""

    train_image: ImageProcessor
    eval_image: ImageProcessor
    train_text: TextProcessor
    eval_text: TextProcessor
    train_open: ImageOpener = dataclasses.field(default_factory=ImageOpener)
    eval_open: ImageOpener = dataclasses.field(default_factory=ImageOpener)

    def evaluated(self, image: Path | Image.Image) -> Tensor:
        """Open an image file, or convert a PIL image, and process it for evaluation: (3, S, S)."""
        opener = self.eval_open
        return self.eval_image(
            opener.convert(image) if isinstance(image, Image.Image) else opener.open(image)
        )


class Split(Protocol):
    """One split of a dataset, as training reads it. An item is an image with one or several of its captions."""

    name: str
    split: str
    sharded: bool
    """Whether neighbours lie near each other on the disk, so that an order should keep them near."""
    processors: Processors
    cache: PixelCache | None
    features: FeatureCache | None

    def __len__(self) -> int: ...

    def drawn(self, index: int, generator: torch.Generator) -> tuple[Image.Image, list[str], int]:
        """Return the image of item `index`, 8-bit RGB, its drawn captions, and its number."""

    def where(self, index: int) -> str:
        """Return where item `index` is stored, for messages."""

    def image_name(self, number: int) -> str:
        """Return how the image with this number is called in the dataset's files, for messages."""

    @property
    def image_count(self) -> int:
        """Images of the split."""

    def for_evaluation(self) -> CaptionDataset:
        """Return what an evaluation reads; raises ConfigError where the split can only be trained on."""


class CaptionDataset:
    """Records of one split.

    An item is a caption with its image; with `captions_per_image` = n it is an image with n of its captions drawn.

    Args:
        name: the dataset's name in the configuration.
        split: the split's name.
        records: one record a caption, images in any order.
        folder: where the images are.
        processors: image and text processors of both modes.
        references: references by the dataset's own image ids, for scoring; None takes the records' captions.
        train: whether it is trained on, so that images are opened as for training.
        captions_per_image: none, or n.
        cache: the images, decoded and resized; row k is the k-th of `image_names`.

    Attributes:
        numbers: image id → the number that stands for it in batches; see `number_images`.
        features: what the encoder says of random views of the images, where training reads that.
        eval_features: what it says of the images as evaluation sees them, where validation reads that.
    """

    sharded = False

    def __init__(
        self,
        name: str,
        split: str,
        records: Sequence[CaptionRecord],
        folder: Path,
        processors: Processors,
        *,
        references: dict[Id, list[str]] | None = None,
        train: bool = False,
        captions_per_image: int | None = None,
        cache: PixelCache | None = None,
    ) -> None:
        self.name = name
        self.split = split
        self.records = list(records)
        self.folder = folder
        self.processors = processors
        self.train = train
        self.captions_per_image = captions_per_image
        self.cache = cache
        self.features: FeatureCache | None = None
        self.eval_features: FeatureCache | None = None
        self.groups = group_by_image(self.records)
        self.numbers = number_images([self.records[group[0]].image_id for group in self.groups])
        self._own_ids = {number: image_id for image_id, number in self.numbers.items()}
        self.image_names = [self.records[group[0]].image for group in self.groups]
        self.references = references if references is not None else captions_by_image(self.records)
        self._row = {record: row for row, group in enumerate(self.groups) for record in group}

    def __len__(self) -> int:
        """Captions, or images where captions are drawn."""
        return len(self.records) if self.captions_per_image is None else len(self.groups)

    def for_evaluation(self) -> CaptionDataset:
        """Return itself: every image can be read by its number, and has references."""
        return self

    def draw(self, index: int, generator: torch.Generator) -> list[int]:
        """Return the records of item `index`: itself, or n of an image's (repeated where it has fewer)."""
        if self.captions_per_image is None:
            return [index]
        return draw_captions(self.groups[index], self.captions_per_image, generator)

    def drawn(self, index: int, generator: torch.Generator) -> tuple[Image.Image, list[str], int]:
        """Return the image of item `index`, its drawn captions, and its number."""
        drawn = self.draw(index, generator)
        records = [self.records[record] for record in drawn]
        return self.open(drawn[0]), [record.caption for record in records], self.numbers[records[0].image_id]

    def own_id(self, number: int) -> Id:
        """Return the id that the image with this number has in the dataset's files."""
        return self._own_ids[number]

    def image_name(self, number: int) -> str:
        """Return how the image with this number is called in the dataset's files, for messages."""
        own_id = self.own_id(number)
        image = next(record.image for record in self.records if record.image_id == own_id)
        return f"{self.name} {self.split} {own_id} ({self.folder / image})"

    @property
    def image_count(self) -> int:
        """Images of the split."""
        return len(self.groups)

    def where(self, index: int) -> str:
        """Return the image file of item `index`, for messages."""
        record = index if self.captions_per_image is None else self.groups[index][0]
        return str(self.folder / self.records[record].image)

    def open(self, record: int) -> Image.Image:
        """Open the image of a record, 8-bit RGB: decoded from its file, or a copy of the cached one."""
        if self.cache is not None:
            return Image.fromarray(np.array(self.cache.pixels[self._row[record]]))
        return self.opener.open(self.folder / self.records[record].image)

    @property
    def opener(self) -> ImageOpener:
        """What opens the images of the mode that the split is built for."""
        return self.processors.train_open if self.train else self.processors.eval_open

    def cached_pixels(self, records: Sequence[int], *, pinned: bool = False) -> Tensor:
        """Return the cached images of `records`, (B, H, W, 3) uint8, if wished in memory that a GPU copies from."""
        if self.cache is None:
            raise ValueError(f"dataset {self.name} has no cache")
        pixels, rows = self.cache.pixels, [self._row[record] for record in records]
        if not pinned:
            return torch.from_numpy(pixels[rows])
        found = torch.empty((len(rows), *pixels.shape[1:]), dtype=torch.uint8, pin_memory=True)
        np.take(pixels, rows, axis=0, out=found.numpy(), mode="clip")  # "raise" would copy twice
        return found

    def encoded(self, record: int, turn: int) -> Tensor:
        """Return what was kept of a record's image, (1, N, C) float16, in the view whose turn it is."""
        if self.features is None:
            raise ValueError(f"dataset {self.name} has no features")
        return self.features.read([self._row[record]], turn)

    def encoded_for_evaluation(self, records: Sequence[int]) -> Tensor:
        """Return what was kept of the images of `records` as evaluation sees them, (B, N, C) float16."""
        if self.eval_features is None:
            raise ValueError(f"dataset {self.name} has no features for evaluation")
        return self.eval_features.read([self._row[record] for record in records], 0)


def seeded(*key: int) -> torch.Generator:
    """Return a generator that depends on the whole `key` (seed, epoch, position)."""
    state = np.random.SeedSequence([abs(part) for part in key]).generate_state(1, np.uint32)
    return torch.Generator().manual_seed(int(state[0]))


def draw_captions(captions: Sequence[T], count: int, generator: torch.Generator) -> list[T]:
    """Draw `count` of an image's captions, each once before one comes again."""
    order = torch.randperm(len(captions), generator=generator).tolist()
    return [captions[order[k % len(order)]] for k in range(count)]


def group_by_image(records: Sequence[CaptionRecord]) -> list[list[int]]:
    """Return the records of every image, images in the order in which they come."""
    groups: dict[Id, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(record.image_id, []).append(index)
    return list(groups.values())


def number_images(ids: Sequence[Id]) -> dict[Id, int]:
    """Return image id → number: the id itself, or its place in `ids` where one is text, negative or very large."""
    if all(isinstance(image_id, int) and 0 <= image_id < IDS_OF_A_DATASET for image_id in ids):
        return {image_id: int(image_id) for image_id in ids}
    return {image_id: place for place, image_id in enumerate(ids)}
