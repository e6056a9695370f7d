"""Opening image files: any mode and bit depth to 8-bit RGB, by one stated rule.

- Grey, palette, CMYK and one-bit images are converted to RGB; an alpha band is dropped, not blended.
- Samples deeper than 8 bits (16-bit and 32-bit grey, 16-bit colour, floating point) are stretched: each kept
  band's 2nd percentile becomes 0 and its 98th 255, linearly, cut at both ends; NaN and infinity count as 0.
- Of images with more than four bands, or with a fourth band that is no alpha, the first three are red, green
  and blue unless ``bands`` names others. Two-band images are grey and alpha.
- Orientation tags are not applied: aerial captions know no up, and the published system ignores them.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from bita.errors import UserError

_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".gif")


def stretch_to_uint8(samples: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Stretch each band of ``samples`` (H, W) or (H, W, C) from its 2nd..98th percentiles to 0..255."""
    values = np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = np.percentile(values, (2.0, 98.0), axis=(0, 1), keepdims=True)
    span = np.where(high > low, high - low, 1.0)
    stretched: npt.NDArray[np.uint8] = np.rint(np.clip((values - low) / span, 0.0, 1.0) * 255.0).astype(
        np.uint8
    )
    return stretched


def open_rgb(
    path: Path, *, draft: tuple[int, int] | None = None, bands: Sequence[int] | None = None
) -> Image.Image:
    """Open, decode and convert one image file to 8-bit RGB.

    Args:
        path: The file.
        draft: (width, height) that is needed at least: a larger JPEG is decoded at 1/2, 1/4 or 1/8 of its
            size where that is still enough (quicker; its pixels differ a little from a full decode).
        bands: Three band numbers, from 1, that become red, green and blue; None takes the file's own colours.

    Raises:
        UserError: The file is missing, is no image, is broken, or is large enough to be a decompression bomb.
    """
    with _one_line(path):
        if bands is not None or (path.suffix.lower() in _TIFF_SUFFIXES and _needs_tifffile(path)):
            return Image.fromarray(_select_bands(_read_samples(path), bands, path))
        with Image.open(path) as image:
            if draft is not None:
                image.draft("RGB", draft)
            return to_rgb(image)


def decode_rgb(content: bytes, where: str, *, draft: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image file's bytes to 8-bit RGB; errors name ``where`` (see ``open_rgb``)."""
    with _one_line(where), Image.open(io.BytesIO(content)) as image:
        if draft is not None:
            image.draft("RGB", draft)
        return to_rgb(image)


@contextlib.contextmanager
def _one_line(where: Path | str) -> Iterator[None]:
    """Turn whatever an image library raises into a UserError that names ``where``."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{where}: image is missing") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{where}: image is refused ({error})") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{where}: image does not open ({reason.replace(repr(str(where)), 'file')})"
        ) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image of any mode to 8-bit RGB by this module's rule."""
    if image.mode in _DEEP_MODES:
        return Image.fromarray(stretch_to_uint8(np.asarray(image))).convert("RGB")
    if image.mode in ("P", "PA") and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _needs_tifffile(path: Path) -> bool:
    """Whether a TIFF holds what Pillow cannot give whole: deep colour, or more bands than colours."""
    try:
        with Image.open(path) as image:
            tags = getattr(image, "tag_v2", {})
            bits = tags.get(258, (1,))
            return len(bits) > 4 or (len(bits) > 1 and max(bits) > 8)
    except UnidentifiedImageError:
        return True


def _read_samples(path: Path) -> npt.NDArray[np.generic]:
    """Read a file's samples as they are, (H, W, C)."""
    if path.suffix.lower() not in _TIFF_SUFFIXES:
        with Image.open(path) as image:
            samples: npt.NDArray[np.generic] = np.asarray(
                image.convert("RGB") if image.mode == "P" else image
            )
        return samples[:, :, None] if samples.ndim == 2 else samples
    try:
        import tifffile  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        reason = "broken, or deep colour or many bands, which need tifffile: pip install tifffile"
        raise UserError(f"{path}: image does not open ({reason})") from None
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        if series.size > 2 * (Image.MAX_IMAGE_PIXELS or series.size) * 3:
            raise UserError(f"{path}: image is refused ({series.size} samples could be a decompression bomb)")
        samples = series.asarray()
        axes = series.axes
    if samples.ndim == 2:
        return samples[:, :, None]
    if samples.ndim != 3:
        raise UserError(f"{path}: image does not open (axes {axes}; wanted rows, columns and bands)")
    return np.moveaxis(samples, 0, -1) if axes.endswith("YX") else samples


def _select_bands(
    samples: npt.NDArray[np.generic], bands: Sequence[int] | None, path: Path
) -> npt.NDArray[np.uint8]:
    """Pick three bands of ``samples`` (H, W, C), stretched to 8 bits where they are deeper."""
    count = samples.shape[2]
    wanted = list(bands) if bands is not None else ([1, 2, 3] if count >= 3 else [1, 1, 1])
    if len(wanted) != 3 or not all(1 <= band <= count for band in wanted):
        raise UserError(f"{path}: bands {wanted} are not three numbers from 1 to {count}, the image's bands")
    picked = samples[:, :, [band - 1 for band in wanted]]
    return np.ascontiguousarray(picked if picked.dtype == np.uint8 else stretch_to_uint8(picked)).astype(
        np.uint8
    )
