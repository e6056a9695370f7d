"""Published datasets and generic forms as they come: one list of images with their captions and splits.

A reader does not judge: which of its images are usable is decided in ``prepare``. What it cannot read at all
(no JSON, a field missing) is a one-line error that names the file and the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bita.errors import UserError
from bita.files import field, load_json

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SourceImage:
    """One image as listed."""

    image: str
    """Path below the image folder, as listed."""
    split: str
    captions: tuple[str, ...]
    where: str
    """The record's place in its file, for messages."""
    category: str | None = None
    """Class of the scene, where the layout declares it."""


@dataclass(frozen=True)
class Published:
    """What a published dataset is called, where its files are, and how many images it has."""

    title: str
    annotation: str
    images: str
    read: Callable[[Path], list[SourceImage]]
    counts: dict[str, int]
    """Images by split."""
    captions: int
    """Captions in all splits together."""
    lacking: int = 0
    """Images that are listed, and in no archive that their owners give out."""


def read_karpathy(path: Path) -> list[SourceImage]:
    """Read ``{"images": [{"filename", "split", "sentences": [{"raw"}]}]}``: UCM, RSICD, Sydney, Karpathy's COCO.

    A record's ``filepath``, where there is one, stands in front of its file name; split ``restval`` is ``train``.
    """
    images = []
    for index, record in enumerate(field(load_json(path), "images", list, path, "top level")):
        where = f"images[{index}]"
        name = field(record, "filename", str, path, where)
        split = field(record, "split", str, path, where)
        sentences = field(record, "sentences", list, path, f"{where} ({name})")
        captions = tuple(
            field(sentence, "raw", str, path, f"{where}.sentences[{k}] ({name})")
            for k, sentence in enumerate(sentences)
        )
        folder = record.get("filepath")
        image = f"{folder}/{name}" if isinstance(folder, str) and folder else name
        images.append(SourceImage(image, "train" if split == "restval" else split, captions, where))
    return images


def read_nwpu(path: Path) -> list[SourceImage]:
    """Read ``{"<class>": [{"filename", "split", "raw", "raw_1", …, "raw_4"}]}``; images lie in ``<class>/``."""
    return list(_nwpu_records(path))


def _nwpu_records(path: Path) -> Iterator[SourceImage]:
    content = load_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: top level: wanted an object of classes, found {type(content).__name__}")
    for category in content:
        for index, record in enumerate(field(content, category, list, path, "top level")):
            where = f"{category}[{index}]"
            name = field(record, "filename", str, path, where)
            split = field(record, "split", str, path, where)
            keys = [key for key in ("raw", "raw_1", "raw_2", "raw_3", "raw_4") if key in record]
            captions = tuple(field(record, key, str, path, f"{where} ({name})") for key in keys)
            yield SourceImage(f"{category}/{name}", split, captions, where, category)


PUBLISHED = {
    "ucm_caption": Published(
        "UCM-Captions",
        "dataset.json",
        "imgs",
        read_karpathy,
        {"train": 1680, "val": 210, "test": 210},
        10_500,
    ),
    "sydney_caption": Published(
        "Sydney-Captions", "dataset.json", "imgs", read_karpathy, {"train": 497, "val": 58, "test": 58}, 3_065
    ),
    "rsicd_caption": Published(
        "RSICD",
        "dataset_rsicd.json",
        "RSICD_images",
        read_karpathy,
        {"train": 8734, "val": 1094, "test": 1093},
        54_605,
    ),
    "nwpu_caption": Published(
        "NWPU-Captions",
        "dataset_nwpu.json",
        "NWPU_images",
        read_nwpu,
        {"train": 25_200, "val": 3150, "test": 3150},
        157_500,
        lacking=1,  # airplane_111.jpg
    ),
}
