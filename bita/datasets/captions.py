"""One caption dataset: records of {image, caption, image_id}, their images, and the references of every image.

Letters: B records, H rows, W columns, S the processors' image size, n captions of one image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bita.datasets.cache import FeatureCache, PixelCache
from bita.errors import UserError
from bita.files import field, load_json
from bita.processors.image import ASPECT_RATIOS
from bita.processors.rgb import open_rgb


@dataclass(frozen=True, slots=True)
class CaptionRecord:
    """One caption of one image."""

    image: str
    """Path below the image folder."""
    caption: str
    image_id: int
    """Unique within the dataset."""


class Sample(TypedDict):
    """One processed record."""

    image: Tensor
    """(3, S, S) float32."""
    text: str
    image_id: int


class TrainImage(Protocol):
    """Random image processor: what it gives depends on the generator alone."""

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Tensor:
        """Return (3, S, S)."""


@dataclass(frozen=True)
class Processors:
    """What turns pictures into tensors and captions into texts."""

    train_image: TrainImage
    eval_image: Callable[[Image.Image], Tensor]
    train_text: Callable[[str], str]
    eval_text: Callable[[str], str]

    def training_text(self, caption: str, generator: torch.Generator) -> str:
        """Process a caption for training; a processor that draws (has ``draw``) does so from ``generator``."""
        draw: Callable[[str, torch.Generator], str] | None = getattr(self.train_text, "draw", None)
        return self.train_text(caption) if draw is None else draw(caption, generator)


@dataclass(frozen=True)
class ImageFiles:
    """Where the images are and how they are opened."""

    folder: Path
    bands: tuple[int, ...] | None = None
    draft: tuple[int, int] | None = None
    """(width, height) below which a JPEG is not decoded; None decodes in full."""

    def open(self, image: str) -> Image.Image:
        """Open one image as 8-bit RGB."""
        return open_rgb(self.folder / image, draft=self.draft, bands=self.bands)


def draft_size(image_size: int, min_scale: float) -> tuple[int, int]:
    """Return (width, height) that a JPEG needs so that no random crop has to be enlarged to ``image_size``."""
    side = math.ceil(image_size / math.sqrt(min_scale * ASPECT_RATIOS[0]))
    return side, side


class CaptionDataset(Dataset[Sample]):
    """Records of one split.

    An item is a caption with its image; with ``captions_per_image`` = n it is an image with n of its captions drawn.

    Args:
        name: The dataset's name in the configuration.
        split: The split's name.
        records: One record a caption, images in any order.
        files: Where the images are.
        processors: Image and text processors of both modes.
        references: References by image id, for scoring; None takes the records' captions.
        train: Whether ``dataset[i]`` goes through the training processors.
        seed: Seed of the random draws of ``dataset[i]``.
        captions_per_image: None, or n.
        cache: The images, decoded and resized; row k is the k-th of ``image_names``.
    """

    sharded = False

    def __init__(
        self,
        name: str,
        split: str,
        records: Sequence[CaptionRecord],
        files: ImageFiles,
        processors: Processors,
        *,
        references: dict[int, list[str]] | None = None,
        train: bool = False,
        seed: int = 42,
        captions_per_image: int | None = None,
        cache: PixelCache | None = None,
    ) -> None:
        self.name = name
        self.split = split
        self.records = list(records)
        self.files = files
        self.processors = processors
        self.train = train
        self.seed = seed
        self.captions_per_image = captions_per_image
        self.cache = cache
        self.features: FeatureCache | None = None
        self.groups = group_by_image(self.records)
        self.image_names = [self.records[group[0]].image for group in self.groups]
        self.references = references if references is not None else self._captions()
        self._row = {record: row for row, group in enumerate(self.groups) for record in group}

    def __len__(self) -> int:
        """Captions, or images where captions are drawn."""
        return len(self.records) if self.captions_per_image is None else len(self.groups)

    def __getitem__(self, index: int) -> Sample:
        """Return one processed record (of a drawn caption, the first); raises UserError for a broken image."""
        generator = seeded(self.seed, 0, index)
        record = self.draw(index, generator)[0]
        image = self.open(record)
        caption = self.records[record]
        if self.train:
            tensor, text = (
                self.processors.train_image(image, generator),
                self.processors.training_text(caption.caption, generator),
            )
        else:
            tensor, text = self.processors.eval_image(image), self.processors.eval_text(caption.caption)
        return {"image": tensor, "text": text, "image_id": caption.image_id}

    def draw(self, index: int, generator: torch.Generator) -> list[int]:
        """Return the records of item ``index``: itself, or n of an image's (repeated where it has fewer)."""
        if self.captions_per_image is None:
            return [index]
        group = self.groups[index]
        order = torch.randperm(len(group), generator=generator).tolist()
        return [group[order[k % len(order)]] for k in range(self.captions_per_image)]

    def drawn(self, index: int, generator: torch.Generator) -> tuple[Image.Image, list[str], int]:
        """Return the image of item ``index``, its drawn captions, and its id."""
        drawn = self.draw(index, generator)
        records = [self.records[record] for record in drawn]
        return self.open(drawn[0]), [record.caption for record in records], records[0].image_id

    @property
    def image_count(self) -> int:
        """Images of the split."""
        return len(self.groups)

    def where(self, index: int) -> str:
        """Return the image file of item ``index``, for messages."""
        record = index if self.captions_per_image is None else self.groups[index][0]
        return str(self.files.folder / self.records[record].image)

    def open(self, record: int) -> Image.Image:
        """Open the image of a record, 8-bit RGB: decoded from its file, or a copy of the cached one."""
        if self.cache is not None:
            return Image.fromarray(np.array(self.cache.pixels[self._row[record]]))
        return self.files.open(self.records[record].image)

    def cached_pixels(self, records: Sequence[int]) -> Tensor:
        """Return the cached images of ``records``, (B, H, W, 3) uint8."""
        if self.cache is None:
            raise ValueError(f"dataset {self.name} has no cache")
        return torch.from_numpy(self.cache.pixels[[self._row[record] for record in records]])

    def encoded(self, record: int, turn: int) -> Tensor:
        """Return what was kept of a record's image, (1, N, C) float16, in the view whose turn it is."""
        if self.features is None:
            raise ValueError(f"dataset {self.name} has no features")
        return self.features.read([self._row[record]], turn)

    def _captions(self) -> dict[int, list[str]]:
        return {
            self.records[group[0]].image_id: [self.records[record].caption for record in group]
            for group in self.groups
        }


def seeded(*key: int) -> torch.Generator:
    """Return a generator that depends on the whole ``key`` (seed, epoch, position)."""
    state = np.random.SeedSequence([abs(part) for part in key]).generate_state(1, np.uint32)
    return torch.Generator().manual_seed(int(state[0]))


def group_by_image(records: Sequence[CaptionRecord]) -> list[list[int]]:
    """Return the records of every image, images in the order in which they come."""
    groups: dict[int, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(record.image_id, []).append(index)
    return list(groups.values())


def read_annotations(files: Sequence[Path]) -> list[CaptionRecord]:
    """Read annotation files: JSON lists of {image, caption, image_id}; a caption may be a list of captions.

    Raises:
        UserError: A file is no JSON list, a record lacks a field or has an empty caption, or an image id stands for
            two images or an image has two ids. File and record are named.
    """
    records: list[CaptionRecord] = []
    image_of: dict[int, str] = {}
    id_of: dict[str, int] = {}
    for path in files:
        content = load_json(path)
        if not isinstance(content, list):
            raise UserError(
                f"{path}: wanted a JSON list of {{image, caption, image_id}}, not {type(content).__name__}"
            )
        if not content:
            raise UserError(f"{path}: the list is empty")
        for index, entry in enumerate(content):
            where = f"record {index}"
            image = field(entry, "image", str, path, where)
            where = f"{where} ({image})"
            image_id = field(entry, "image_id", int, path, where)
            if image_of.setdefault(image_id, image) != image:
                raise UserError(
                    f"{path}: {where}: image_id {image_id} is that of {image_of[image_id]}; ids must differ"
                )
            if id_of.setdefault(image, image_id) != image_id:
                raise UserError(
                    f"{path}: {where}: image_id {image_id}, but {id_of[image]} in an earlier record"
                )
            records += [
                CaptionRecord(image, caption, image_id) for caption in _entry_captions(entry, path, where)
            ]
    return records


def _entry_captions(entry: dict[str, Any], path: Path, where: str) -> list[str]:
    captions = entry.get("caption")
    if not isinstance(captions, list):
        captions = [field(entry, "caption", str, path, where)]
    if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
        raise UserError(f"{path}: {where}: caption is empty")
    return captions


def read_ground_truth(path: Path) -> dict[int, list[str]]:
    """Read the references of every image from a COCO file; raises UserError naming file and record."""
    references: dict[int, list[str]] = {}
    for index, entry in enumerate(field(load_json(path), "annotations", list, path, "top level")):
        where = f"annotations[{index}]"
        image_id = field(entry, "image_id", int, path, where)
        caption = field(entry, "caption", str, path, where)
        if not caption.strip():
            raise UserError(f"{path}: {where}: caption is empty")
        references.setdefault(image_id, []).append(caption)
    return references
