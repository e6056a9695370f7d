"""Opening image files: any container, mode and bit depth to 8-bit RGB, by one stated rule.

- The content decides what a file is, not its name; of several images in a file (animation, pages) the first counts.
- Grey, palette, CMYK, YCbCr and one-bit images are converted to RGB; an alpha band is dropped, not blended.
- Samples that are not whole numbers of at most 8 bits are stretched: each kept band's 2nd percentile becomes 0 and its
  98th 255, linearly, cut at both ends. NaN, infinity, GDAL's nodata, usual fill values and transparent pixels
  count for no percentile and become 0. 8-bit samples stay as they are.
- Of images with more than four bands, or with a fourth band that is no alpha, the first three are red, green
  and blue unless `bands` names others. Two-band images are grey and alpha.
- Orientation tags are applied, those of EXIF and those of TIFF.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from bita.errors import UserError
from bita.magic import HEAD, other_kind
from bita.processors.samples import (
    Mask,
    Samples,
    TooLargeError,
    check_size,
    orientation_of,
    read_samples,
)

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".gif"),
    *(".jpe", ".jfif", ".mpo", ".apng", ".avif", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".btf", ".tf8"),
)
"""Names by which images are found in archives and shards; how a file is read does not depend on its name."""
_GREY = (124, 116, 104)
"""CLIP's mean colour."""
_RULE = 2
"""Counts the rules of this module: kept pixels of an earlier one are made anew."""
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "JPEG2000", "AVIF")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def grey() -> Image.Image:
    """Return what stands for an image that does not open (`run.on_bad_image: skip`)."""
    return Image.new("RGB", (64, 64), _GREY)


class NoImageError(UserError):
    """The content of a file is something else than an image, or an image of a kind that is not read."""


@dataclass(frozen=True)
class ImageOpener:
    """How image files become 8-bit RGB images.

    Attributes:
        bands: three band numbers, from 1, that become red, green and blue; None takes the file's own colours.
        draft: (width, height) that is needed at least: a larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size where
            that is still enough (quicker; its pixels differ a little from a full decode).

    Raises:
        ValueError: `bands` are not three numbers from 1.
    """

    bands: tuple[int, ...] | None = None
    draft: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.bands is not None and (len(self.bands) != 3 or min(self.bands) < 1):
            raise ValueError(f"wanted three band numbers from 1, not {list(self.bands)}")

    @property
    def rule(self) -> str:
        """Whatever the pixels depend on besides the file; it is kept beside kept pixels."""
        return f"rule {_RULE} bands {self.bands} draft {self.draft}"

    def open(self, path: Path) -> Image.Image:
        """Open one image file.

        Raises:
            UserError: the file is missing, is no image, is broken, or is large enough to be a decompression bomb.
        """
        with in_one_line(path), path.open("rb") as file:
            return self._read(file)

    def decode(self, content: bytes, where: str) -> Image.Image:
        """Open an image file's bytes; errors name `where` (see `open`)."""
        with in_one_line(where):
            return self._read(io.BytesIO(content))

    def convert(self, image: Image.Image) -> Image.Image:
        """Convert a PIL image of any mode, its orientation applied.

        Raises:
            UserError: it does not have the bands, or no pixels.
        """
        if not all(image.size):
            raise UserError("image does not open (it has no pixels)")
        image.load()  # a TIFF that Pillow opened is turned here, and then says so
        orientation = orientation_of(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            return self.show(Samples(np.asarray(image)[:, :, None], orientation=orientation))
        if self.bands is None:
            return _turned(_colours_of(image).convert("RGB"), orientation)
        kept = image if image.mode in ("L", "LA", "RGB", "RGBA") else _colours_of(image).convert("RGB")
        return self.show(Samples(np.atleast_3d(np.asarray(kept)), orientation=orientation))

    def _read(self, file: BinaryIO) -> Image.Image:
        samples = read_samples(file)
        if samples is not None:
            return self.show(samples)
        try:
            image = Image.open(file, formats=_FORMATS)
        except UnidentifiedImageError:
            file.seek(0)
            kind = other_kind(file.read(HEAD))
            if kind is None:
                kind = f"none of TIFF, {', '.join(_FORMATS)}"
            elif ";" not in kind:
                kind += " of a kind that is not read; convert it to PNG or TIFF"
            raise NoImageError(f"image does not open (its content is {kind})") from None
        with image:
            check_size(*image.size)
            if self.draft is not None:
                image.draft("RGB", self.draft)
            return self.convert(image)

    def show(self, samples: Samples) -> Image.Image:
        """Pick three bands and make them 8-bit RGB, the image upright.

        Raises:
            UserError: there are not the bands that are wanted.
        """
        count = samples.values.shape[2]
        bands = self.bands or ((1, 2, 3) if count >= 3 else (1, 1, 1))
        if max(bands) > count:
            raise UserError(f"bands {list(bands)} are not three numbers from 1 to {count}, the image's bands")
        shown = {band: _band_to_uint8(samples, band - 1, bands) for band in set(bands)}
        pixels = np.stack([shown[band] for band in bands], axis=2)
        return _turned(Image.fromarray(pixels), samples.orientation)


_SHORT = (np.dtype(np.uint16), np.dtype(np.int16))
ABSURD = 1e30
"""Samples beyond are no measurement: GDAL fills float32 with -3.4e38."""
FILLS = (-9999.0, -32768.0)
"""What files without a nodata tag are filled with: such a value, where it is a band's lowest, is one."""


def open_rgb(path: Path) -> Image.Image:
    """Open an image file in its own colours, as `ImageOpener.open` does: where there is no run to ask."""
    return ImageOpener().open(path)


@dataclass(frozen=True)
class Stretch:
    """How a band's samples become 0..255, linearly, cut at both ends; what is no measurement becomes 0.

    Attributes:
        low: what becomes 0.
        high: what becomes 255.
        fill: a value that stands for no data; None: there is none.
    """

    low: float
    high: float
    fill: float | None = None

    @classmethod
    def of(cls, values: npt.NDArray[Any], valid: Mask | None = None) -> Self:
        """Stretch from the 2nd to the 98th percentile of a band's valid and finite samples."""
        samples = values.astype(np.float64)
        counted = cls(0, 0).measured(samples, valid)
        lowest = samples[counted].min(initial=0)
        fill = float(lowest) if lowest in FILLS else None
        counted &= samples != fill
        if not counted.any():
            return cls(0, 0, fill)
        with np.errstate(over="ignore", invalid="ignore"):  # numbers near the end of float64 have no span
            low, high = np.percentile(samples[counted], (2.0, 98.0))
        return cls(float(low), float(high), fill)

    def measured(self, values: npt.NDArray[Any], valid: Mask | None = None) -> Mask:
        """Return which samples are data: valid ones, finite, not absurd and not the fill."""
        if values.dtype.kind in "iu":
            counted: Mask = np.ones(values.shape, np.bool_)
        else:
            counted = np.isfinite(values) & (np.abs(values) < ABSURD)
        if valid is not None:
            counted &= valid
        return counted if self.fill is None else counted & (values != self.fill)

    def __call__(self, values: npt.NDArray[Any], valid: Mask | None = None) -> npt.NDArray[np.uint8]:
        """Stretch samples of any shape; those of 16 bits are looked up."""
        if values.dtype in _SHORT:
            shown = _levels(self, values.dtype).take(values.view(np.uint16))
            return shown if valid is None else shown * valid
        return self._stretched(values, valid)

    def _stretched(self, values: npt.NDArray[Any], valid: Mask | None) -> npt.NDArray[np.uint8]:
        samples = values.astype(np.float64)
        span = self.high - self.low if self.high > self.low else 1.0
        with np.errstate(over="ignore", invalid="ignore"):
            stretched = np.clip((samples - self.low) / span, 0.0, 1.0) * 255.0
        shown = np.where(self.measured(samples, valid), np.rint(np.nan_to_num(stretched)), 0.0)
        return shown.astype(np.uint8)


@lru_cache(maxsize=16)
def _levels(stretch: Stretch, kind: np.dtype[Any]) -> npt.NDArray[np.uint8]:
    """What each sample of a kind of 16 bits becomes, by its bits: (65536,)."""
    return stretch._stretched(np.arange(1 << 16, dtype=np.uint16).view(kind), None)


def stretch_to_uint8(values: npt.NDArray[Any], valid: Mask | None = None) -> npt.NDArray[np.uint8]:
    """Stretch a band (H, W) from the 2nd..98th percentiles of its valid and finite samples to 0..255; others are 0."""
    return Stretch.of(values, valid)(values, valid)


def _band_to_uint8(samples: Samples, band: int, bands: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return one band of an image, stretched where it is deeper than 8 bits."""
    values = samples.values[:, :, band]
    if values.dtype == np.uint8:
        return np.asarray(values, np.uint8)
    valid = None
    if samples.valid is not None:
        valid = samples.valid[:, :, band if samples.valid.shape[2] > 1 else 0]
    if samples.alpha is not None and samples.alpha + 1 not in bands:
        opaque = samples.values[:, :, samples.alpha] != 0
        if opaque.any():
            valid = opaque if valid is None else valid & opaque
    return stretch_to_uint8(values, valid)


def _colours_of(image: Image.Image) -> Image.Image:
    """Return an image of which `convert` drops the transparency without a look at it."""
    return image.convert("RGBA") if image.mode in ("P", "PA") and "transparency" in image.info else image


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image upright; the turned one does not say any more that it must be turned."""
    if orientation not in _TURNS:
        return image
    turned = image.transpose(_TURNS[orientation])
    turned.info.clear()
    return turned


@contextlib.contextmanager
def in_one_line(where: Path | str) -> Iterator[None]:
    """Turn whatever an image library raises into a UserError that names `where`."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{where}: image is missing") from None
    except UserError as error:
        raise type(error)(f"{where}: {error}") from None
    except Image.DecompressionBombError as error:
        raise TooLargeError(
            f"{where}: image is refused ({str(error).rstrip('.')}; cut it into tiles)"
        ) from None
    except Exception as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = " ".join(said.split()) or type(error).__name__
        raise UserError(f"{where}: image does not open ({reason})") from None
