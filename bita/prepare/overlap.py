"""Images that are there more than once: equal files by sha256, near copies by a perceptual hash."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from bita.datasets.names import ImageFolder
from bita.errors import UserError
from bita.files import sha256
from bita.machine import in_threads
from bita.processors.rgb import open_rgb

HASH_SIDE = 16
"""The perceptual hash has 16 × 16 bits."""
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class ImageFacts:
    """What one image file is."""

    dataset: str
    split: str
    image: str
    """Path below the dataset's image folder."""
    fault: str | None
    """Why it cannot be used, or None."""
    size: tuple[int, int] = (0, 0)
    """(width, height) in pixels."""
    sha256: str = ""
    bits: bytes = b""
    """Perceptual hash, 32 bytes."""

    @property
    def place(self) -> str:
        """Dataset and split."""
        return f"{self.dataset} {self.split}"


@dataclass(frozen=True)
class Pair:
    """Two images that are the same, or nearly."""

    first: ImageFacts
    second: ImageFacts
    distance: int
    """Differing bits of the perceptual hash; 0 with `exact`."""
    exact: bool
    """Whether the files are equal byte by byte."""

    @property
    def leaks(self) -> bool:
        """Whether one image is trained on and the other is evaluated on, in whichever dataset."""
        return ("train" in (self.first.split, self.second.split)) and self.first.split != self.second.split


def examine(dataset: str, folder: ImageFolder, images: Sequence[tuple[str, str]]) -> list[ImageFacts]:
    """Open every image of `images` ((split, path below `folder`) pairs) and say what it is."""

    def facts(entry: tuple[str, str]) -> ImageFacts:
        split, name = entry
        path = folder.path(name)
        try:
            image = open_rgb(path)
        except UserError as error:
            return ImageFacts(dataset, split, name, str(error).removeprefix(f"{path}: "))
        digest = sha256(path)
        return ImageFacts(dataset, split, name, None, image.size, digest, difference_hash(image))

    return in_threads(facts, images)


def difference_hash(image: Image.Image) -> bytes:
    """Return 256 bits: whether each of 16 × 16 grey cells is brighter than its right-hand neighbour."""
    small = image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.int16)
    return np.packbits(grey[:, :-1] > grey[:, 1:]).tobytes()


def equal_files(images: Sequence[ImageFacts]) -> list[Pair]:
    """Return the pairs of images whose files are equal byte by byte."""
    groups: dict[str, list[ImageFacts]] = defaultdict(list)
    for image in images:
        if image.fault is None:
            groups[image.sha256].append(image)
    return [
        Pair(first, second, 0, True)
        for group in groups.values()
        for index, first in enumerate(group)
        for second in group[index + 1 :]
    ]


def near_copies(images: Sequence[ImageFacts], distance: int) -> list[Pair]:
    """Return the pairs whose perceptual hashes differ in at most `distance` of 256 bits; equal files are not named.

    Flat images (water, desert) have hashes of noise or of nothing: those with less than 16 bits set or unset are passed
    over.
    """
    usable = [image for image in images if image.fault is None and _tells(image.bits)]
    if not usable:
        return []
    bits = np.frombuffer(b"".join(image.bits for image in usable), dtype=np.uint64).reshape(len(usable), -1)
    pairs = []
    for start in range(0, len(usable), _ROWS_AT_ONCE):
        for row, column, differing in _close(bits, start, distance):
            first, second = usable[row], usable[column]
            if first.sha256 != second.sha256:
                pairs.append(Pair(first, second, differing, False))
    return pairs


def _close(bits: npt.NDArray[np.uint64], start: int, distance: int) -> list[tuple[int, int, int]]:
    """Return (row, column, differing bits) of the close pairs with row < column, rows from `start` on."""
    rows, columns = bits[start : start + _ROWS_AT_ONCE], bits[start:]
    differing = np.zeros((len(rows), len(columns)), dtype=np.uint16)
    for word in range(bits.shape[1]):
        differing += np.bitwise_count(rows[:, word, None] ^ columns[None, :, word])
    found = np.argwhere(differing <= distance)
    return [(start + int(i), start + int(j), int(differing[i, j])) for i, j in found if i < j]


def _tells(bits: bytes) -> bool:
    count = int.from_bytes(bits).bit_count()
    return 16 <= count <= 8 * len(bits) - 16
