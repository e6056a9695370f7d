"""Captions that need no model, to be scored beside it: for any prepared dataset."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bita.datasets.annotations import CaptionRecord
from bita.datasets.names import ImageFolder
from bita.processors.rgb import open_rgb
from bita.records import Id

THUMBNAIL = 8


def constant_captions(train: Sequence[CaptionRecord], test: Sequence[CaptionRecord]) -> dict[Id, str]:
    """Return the most frequent training caption for every test image.

    Args:
        train: its captions.
        test: likewise; their texts are not looked at.
    """
    return class_captions(train, test, lambda image: "")


def class_captions(
    train: Sequence[CaptionRecord], test: Sequence[CaptionRecord], class_of: Callable[[str], str]
) -> dict[Id, str]:
    """Return the most frequent training caption of its own class for every test image: the class oracle.

    Args:
        train: its captions.
        test: likewise; their texts are not looked at.
        class_of: class of an image of either, by its name there; the training split has every class of the other.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in train:
        counts[class_of(record.image)][record.caption] += 1
    captions = {
        name: min(of_class, key=lambda text: (-of_class[text], text)) for name, of_class in counts.items()
    }
    return {image_id: captions[class_of(image)] for image_id, image in _images(test).items()}


def nearest_captions(
    train: Sequence[CaptionRecord],
    test: Sequence[CaptionRecord],
    images: Path,
    open_image: Callable[[Path], Image.Image] = open_rgb,
) -> dict[Id, str]:
    """Return the first caption of the training image that looks most alike, for every test image.

    Alike: least squared distance of thumbnails (8×8 pixels, RGB), the mean colour counted once more.

    Args:
        train: its captions.
        test: likewise; their texts are not looked at.
        images: folder of the pictures of both.
        open_image: how one is opened.
    """
    first: dict[Id, str] = {}
    for record in train:
        first.setdefault(record.image_id, record.caption)
    train_images, test_images = _images(train), _images(test)
    files = ImageFolder(images)
    known = np.stack([_thumbnail(open_image(files.path(name))) for name in train_images.values()])
    captions = list(first.values())
    nearest = {}
    for image_id, name in test_images.items():
        distance = ((known - _thumbnail(open_image(files.path(name)))) ** 2).sum(axis=1)
        nearest[image_id] = captions[int(distance.argmin())]
    return nearest


def _thumbnail(image: Image.Image) -> NDArray[np.float32]:
    """Thumbnail and mean colour as one vector, (THUMBNAIL² · 3 + 3,)."""
    small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32).reshape(-1, 3) / 255
    return np.concatenate([pixels.ravel(), pixels.mean(axis=0) * THUMBNAIL])


def _images(records: Sequence[CaptionRecord]) -> dict[Id, str]:
    return {record.image_id: record.image for record in records}
