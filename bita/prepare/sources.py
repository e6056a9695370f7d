"""Published datasets and generic forms as they come: one list of images with their captions and splits.

A reader does not judge: which of its images are usable is decided in `prepare`. What it cannot read at all
(no JSON, a field missing) is a one-line error that names the file and the record.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bita.records import read_object

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
    """Read `{"images": [{"filename", "split", "sentences": [{"raw"}]}]}`: UCM, RSICD, Sydney, Karpathy's COCO.

    A record's `filepath`, where there is one, stands in front of its file name; split `restval` is `train`.
    """
    images = []
    for record in read_object(path).objects("images"):
        name, split = record.text("filename"), record.text("split")
        sentences = record.about(name).objects("sentences")
        captions = tuple(caption for sentence in sentences for caption in sentence.captions("raw"))
        folder = record.text("filepath") if record.fields.get("filepath") else ""
        image = f"{folder}/{name}" if folder else name
        images.append(SourceImage(image, "train" if split == "restval" else split, captions, record.place))
    return images


def read_nwpu(path: Path) -> list[SourceImage]:
    """Read `{"<class>": [{"filename", "split", "raw", "raw_1", …}]}`; images lie in `<class>/`."""
    images = []
    content = read_object(path)
    for category in content.fields:
        for record in content.objects(category):
            name, split = record.text("filename"), record.text("split")
            keys = [key for key in record.fields if key.lower().startswith("raw")]
            odd = [key for key in keys if not re.fullmatch(r"raw(_\d+)?", key)]
            if odd:
                raise record.about(name).fault(
                    f"field {odd[0]!r} is neither raw nor raw_N; rename it, or take it out"
                )
            keys.sort(key=lambda key: int(key[4:] or 0))
            captions = tuple(caption for key in keys for caption in record.about(name).captions(key))
            images.append(SourceImage(f"{category}/{name}", split, captions, record.place, category))
    return images


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
