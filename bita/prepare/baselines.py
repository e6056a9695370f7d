"""Captions that need no model, to be scored beside it: for any prepared dataset."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from bita.errors import UserError

THUMBNAIL = 8


def constant_captions(train: Path, test: Path) -> dict[int, str]:
    """The most frequent training caption for every test image.

    Args:
        train: annotation file, a JSON list of ``{image, caption, image_id}``.
        test: likewise; its captions are not looked at.
    """
    counts = Counter(str(record["caption"]) for record in _records(train))
    caption = min(counts, key=lambda text: (-counts[text], text))
    return dict.fromkeys(_images(test), caption)


def nearest_captions(train: Path, test: Path, images: Path) -> dict[int, str]:
    """The first caption of the training image that looks most alike, for every test image.

    Alike: least squared distance of thumbnails (8×8 pixels, RGB), the mean colour counted once more.

    Args:
        train: annotation file, a JSON list of ``{image, caption, image_id}``.
        test: likewise; its captions are not looked at.
        images: folder of the pictures of both.
    """
    first: dict[int, str] = {}
    for record in _records(train):
        first.setdefault(int(record["image_id"]), str(record["caption"]))
    train_images, test_images = _images(train), _images(test)
    known = np.stack([_thumbnail(images / name) for name in train_images.values()])
    captions = list(first.values())
    nearest = {}
    for image_id, name in test_images.items():
        distance = ((known - _thumbnail(images / name)) ** 2).sum(axis=1)
        nearest[image_id] = captions[int(distance.argmin())]
    return nearest


def _thumbnail(path: Path) -> NDArray[np.float32]:
    """Thumbnail and mean colour as one vector, (THUMBNAIL² · 3 + 3,)."""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(
            f"{path}: cannot be read as an image; restore it or prepare the dataset anew"
        ) from error
    pixels = np.asarray(small, np.float32).reshape(-1, 3) / 255
    return np.concatenate([pixels.ravel(), pixels.mean(axis=0) * THUMBNAIL])


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); prepare the dataset first") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON; prepare the dataset anew") from error
    wanted = {"image", "caption", "image_id"}
    if not isinstance(records, list) or not records:
        raise UserError(f"{path}: not a list of captions; prepare the dataset anew")
    for k, record in enumerate(records):
        if not isinstance(record, dict) or not wanted <= record.keys():
            raise UserError(f"{path}: record {k} lacks image, caption or image_id; prepare the dataset anew")
    return records


def _images(path: Path) -> dict[int, str]:
    return {int(record["image_id"]): str(record["image"]) for record in _records(path)}
