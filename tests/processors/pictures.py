"""What files are made of and show: samples of every depth, their pixels as they should open, GDAL's reading.

Letters: H rows, W columns, C bands.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image

Array = npt.NDArray[Any]
Cell = dict[str, Any]


@dataclass
class Made:
    """A file, and what it shows."""

    cell: Cell
    content: bytes
    pixels: Array
    """(H, W, 3) uint8, upright."""
    tolerance: int = 0
    """Largest difference that a lossy decoder may make."""


def scene(shape: tuple[int, int], bands: int, low: float, high: float, seed: int) -> Array:
    """A smooth scene with some noise, (H, W, C) float64 from `low` to `high`."""
    generator = np.random.default_rng(seed)
    small = (generator.random((3, 3, bands)) * 255).astype(np.uint8)
    smooth = [
        np.asarray(Image.fromarray(small[:, :, band]).resize(shape[::-1], Image.Resampling.BILINEAR))
        for band in range(bands)
    ]
    values = np.stack(smooth, axis=2) / 255 * 0.9 + 0.1 * generator.random((*shape, bands))
    return low + values * (high - low)


def upright(pixels: Array, orientation: int) -> Array:
    """Turn pixels as EXIF's orientation says."""
    turns: dict[int, Callable[[Array], Array]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.fliplr(np.rot90(a, -1)),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.flipud(np.rot90(a, -1)),
        8: np.rot90,
    }
    return turns[orientation](pixels)


def stretched(values: Array, valid: Array) -> Array:
    """The documented stretch of bands (H, W, C), each by itself."""
    shown = np.zeros(values.shape, np.uint8)
    for band in range(values.shape[2]):
        counted = valid[:, :, band] & np.isfinite(values[:, :, band])
        kept = values[:, :, band][counted].astype(np.float64)
        if kept.size and (span := np.subtract(*np.percentile(kept, [98, 2]))) > 0:
            shown[:, :, band][counted] = np.rint(np.clip((kept - np.percentile(kept, 2)) / span, 0, 1) * 255)
    return shown


def by_cmyk(values: Array) -> Array:
    """Ink to light, 0..1 both."""
    return (1 - values[:, :, :3]) * (1 - values[:, :, 3:4])


def by_gdal(content: bytes) -> tuple[Array, Array] | None:
    """Samples (H, W, C) as GDAL reads them, and where it says that there are data; None: it does not read the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with rasterio.MemoryFile(content) as memory, memory.open() as file:
                return np.moveaxis(file.read(), 0, -1), np.moveaxis(file.read_masks(), 0, -1) > 0
    except (rasterio.errors.RasterioError, rasterio.errors.RasterioIOError):
        return None


FULL = {"bit": 1, "bits2": 3, "bits4": 15, "u1": 255}
RANGES = {
    "u1": (0, 255),
    "u2": (200, 3005),
    "u4": (1e5, 3e9),
    "i1": (-100, 100),
    "i2": (-300, 2000),
    "i4": (-9000, 1e8),
    "f2": (-3, 9),
    "f4": (280, 500),
    "f8": (-1e-5, 1e-3),
    "bits12": (100, 4000),
    "bit": (0, 1),
    "bits2": (0, 3),
    "bits4": (0, 15),
}


def samples(depth: str, shape: tuple[int, int], bands: int, seed: int) -> Array:
    values = scene(shape, bands, *RANGES[depth], seed)
    if depth[0] == "f":
        generator = np.random.default_rng(seed)
        for wrong in (np.nan, np.inf, -np.inf)[: generator.integers(4)]:
            values[generator.random(values.shape) < 0.05] = wrong
        return values.astype(depth)
    kind = {"bit": "?", "bits2": "u1", "bits4": "u1", "bits12": "u2"}.get(depth, depth)
    return np.rint(values).astype(kind)


def shown_of(cell: Cell, values: Array, valid: Array, table: Array | None) -> Array:
    """What samples (H, W, C) of a TIFF's kinds show, (H, W, 3)."""
    kind, depth = cell["kind"], cell["depth"]
    if kind == "palette":
        assert table is not None
        return np.moveaxis(table[:, values[:, :, 0]], 0, -1).astype(np.uint16).astype(np.uint8)
    if depth in FULL:
        scaled = np.rint(values * (255 / FULL[depth])).astype(np.uint8)
        if kind == "white":
            scaled = 255 - scaled
        if kind == "cmyk":
            scaled = np.rint(by_cmyk(scaled / 255) * 255).astype(np.uint8)
        if kind == "ycbcr":
            scaled = np.asarray(Image.fromarray(scaled, "YCbCr").convert("RGB"))
        if kind == "premultiplied":
            opaque = np.clip(scaled[:, :, :3].astype(int) * 255 // np.maximum(scaled[:, :, 3:], 1), 0, 255)
            scaled = np.where(scaled[:, :, 3:] > 0, opaque, scaled[:, :, :3]).astype(np.uint8)
        return scaled[:, :, [0, 1, 2] if scaled.shape[2] > 2 else [0, 0, 0]]
    colours = values
    if kind == "white":
        colours = -values.astype(np.float64)
    if kind == "cmyk":
        colours, valid = (
            np.rint(by_cmyk(values / 65535) * 65535),
            np.repeat(valid.all(axis=2, keepdims=True), 3, 2),
        )
    if kind == "premultiplied":
        colours = np.where(
            values[:, :, 3:] > 0,
            np.clip(values[:, :, :3].astype(int) * 65535 // np.maximum(values[:, :, 3:], 1), 0, 65535),
            values[:, :, :3],
        ).astype(np.uint16)
    picked = [0, 1, 2] if colours.shape[2] > 2 else [0, 0, 0]
    return stretched(colours[:, :, picked], valid[:, :, picked])
