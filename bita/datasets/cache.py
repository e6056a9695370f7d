"""What is worked out once and kept in a memory-mapped file beside the dataset: decoded images, encoded images.

Shapes: V images, K views of each, N image tokens, C image width.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from bita.errors import UserError
from bita.files import exclusive, replacing
from bita.machine import in_threads
from bita.processors.rgb import ImageOpener

LOG = logging.getLogger(__name__)
TRAIN_MARGIN = 8 / 7
"""Cached training images are larger than what the model sees by this factor, so that crops stay sharp."""


class PixelCache:
    """A cache file, memory-mapped: `pixels` is (images, size, size, 3) uint8."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pixels: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r")

    def __reduce__(self) -> tuple[type[PixelCache], tuple[Path]]:
        """Travel to worker processes as a path, not as pixels."""
        return PixelCache, (self.path,)

    @property
    def size(self) -> int:
        """Side of a cached image in pixels."""
        return int(self.pixels.shape[1])


class FeatureCache:
    """A file of features, memory-mapped.

    Attributes:
        tokens: (K, V, N, C) float16.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens: npt.NDArray[np.float16] = np.load(path, mmap_mode="r")

    def __reduce__(self) -> tuple[type[FeatureCache], tuple[Path]]:
        """Travel to worker processes as a path."""
        return FeatureCache, (self.path,)

    def read(self, rows: Sequence[int], turn: int) -> Tensor:
        """The tokens of some images in the `turn`-th view, views being taken round and round: (B, N, C) float16."""
        return torch.from_numpy(self.tokens[turn % len(self.tokens)][list(rows)])


def cache_folder(images: Path, root: str | Path, name: str) -> Path:
    """Return the folder for what is kept of a dataset: beside its images, or below `root` where that is read-only."""
    for folder in (images.parent / "cache", Path(root) / "cache" / name):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            break
    return folder


def is_whole(path: Path) -> bool:
    """Whether a file of `new_array` is there, and was not cut off, nor overwritten with something else."""
    if not path.is_file():
        return False
    try:
        np.load(path, mmap_mode="r")
    except (ValueError, EOFError):
        return False
    return True


def new_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[Any]]:
    """Make a file of zeros and map it into memory.

    Raises:
        OSError: the disk has no room for all of it, which is taken now: a write through memory that finds none later
            ends the process without a word.
    """
    array: np.memmap[Any, np.dtype[Any]] = np.lib.format.open_memmap(
        path, mode="w+", dtype=dtype, shape=shape
    )
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def open_cache(
    names: Sequence[str],
    folder: Path,
    opener: ImageOpener,
    size: int,
    where: Path,
) -> PixelCache:
    """Open the cache of the images `names` at `size` × `size`, and make it first if it is not there.

    The file's name holds a hash of the images' names, sizes and times and of the opener's rule, so that a changed image
    or another way of opening it makes a new file. Processes that want the same file wait for the one that makes it.

    Args:
        names: images below `folder`, one row each.
        folder: the image folder.
        opener: opens them.
        size: side of a cached image; the resize is the eval processor's bicubic one.
        where: folder of the cache file; made if need be.
    """
    key = hashlib.sha256(f"{size} {opener.rule}".encode())
    for name in names:
        status = (folder / name).stat()
        key.update(f"\n{name} {status.st_size} {status.st_mtime_ns}".encode())
    path = where / f"images_{size}_{key.hexdigest()[:16]}.npy"
    if is_whole(path):
        return PixelCache(path)
    try:
        where.mkdir(parents=True, exist_ok=True)
        with exclusive(where / ".lock"):
            if not is_whole(path):
                LOG.info("caching %d images at %d × %d in %s", len(names), size, size, path)
                _write(path, [folder / name for name in names], opener, size)
    except OSError as error:
        raise UserError(
            f"{path}: cache cannot be written ({error.strerror}); set cache_images: false"
        ) from None
    return PixelCache(path)


def _write(path: Path, images: Sequence[Path], opener: ImageOpener, size: int) -> None:
    with replacing(path) as temporary:
        pixels = new_array(temporary, np.uint8, (len(images), size, size, 3))

        def fill(row: int) -> None:
            pixels[row] = np.asarray(opener.open(images[row]).resize((size, size), Image.Resampling.BICUBIC))

        in_threads(fill, range(len(images)))
        pixels.flush()
