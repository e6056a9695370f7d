"""What image files hold, before any conversion to 8-bit RGB: their samples, where these are valid, their orientation.

The content decides which reader takes a file, never its name. Letters: H rows, W columns, C bands.
"""

from __future__ import annotations

import io
import logging
import math
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from bita.errors import UserError
from bita.magic import TIFF

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

MAX_PIXELS = 178_956_970
"""Larger images are refused: Pillow's limit against decompression bombs, here for every reader."""
ORIENTATION = 274
"""The tag of EXIF and TIFF that says how an image is to be turned."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_CODESTREAM = b"\xff\x4f\xff\x51"
_CODESTREAM_END = b"\xff\xd9"
_PNG_CHUNKS_OF_EXIF = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
_JPEG_COMPRESSIONS = (6, 7, 33007, 34892)
_LERC = 34887
_NODATA, _SUBSAMPLING = 42113, 530


class TooLargeError(UserError):
    """An image has more pixels than are decoded."""


@dataclass
class Samples:
    """The bands of one image: red, green and blue first where it has colours, then what else it holds."""

    values: Array
    """(H, W, C)."""
    valid: Mask | None = None
    """(H, W, C) or (H, W, 1): False where the file says that there are no data; None: everywhere."""
    alpha: int | None = None
    """Which band is transparency, from 0."""
    orientation: int = 1
    """1 to 8, as EXIF numbers them."""


def check_size(width: int, height: int, bands: int = 1) -> None:
    """Refuse an image that is too large to be decoded.

    Raises:
        UserError: it has no pixels.
        TooLargeError: it has more pixels than `MAX_PIXELS`, or more than four times as many values in all bands.
    """
    if width < 1 or height < 1:
        raise UserError(f"image does not open (it is {width} × {height} pixels large)")
    if width * height > MAX_PIXELS or width * height * bands > 4 * MAX_PIXELS:
        raise TooLargeError(
            f"image is refused ({width} × {height} pixels of {bands} bands, the limit against decompression bombs is "
            f"{MAX_PIXELS:,} pixels and {4 * MAX_PIXELS:,} values; cut it into tiles)"
        )


def read_samples(file: BinaryIO) -> Samples | None:
    """Read the samples of an image that Pillow would reduce or not read at all; None leaves the file to Pillow.

    These are all TIFFs, PNGs of 16 bits, and JPEG 2000 images that are deeper than 8 bits or have more than four bands.

    Args:
        file: at its start.

    Raises:
        UserError: the image is too large, truncated, or of a kind without colours.
    """
    head = file.read(32)
    file.seek(0)
    if not head:
        raise UserError("image does not open (the file is empty)")
    if head.startswith(TIFF):
        return _read_tiff(file)
    if head.startswith(_PNG) and head[24:25] == b"\x10":
        return _read_deep_png(file.read())
    if head.startswith(_JPEG_2000):
        return _read_jpeg_2000(file)
    return None


def declared_size(file: BinaryIO) -> tuple[int, int, int]:
    """Return width, height and bands that an image file declares, without decoding it; the file is at its start again.

    Raises:
        Exception: whatever its library says of a file that is no image.
    """
    head = file.read(4)
    file.seek(0)
    if head not in TIFF:
        with Image.open(file) as image:
            size = (*image.size, len(image.getbands()))
    else:
        import tifffile

        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages.first
            stack = _stack(tiff) if page.samplesperpixel == 1 else None
            bands = page.samplesperpixel if stack is None else stack.shape[0]
            size = (page.imagewidth, page.imagelength * page.imagedepth, bands)
    file.seek(0)
    return size


def orientation_of(image: Image.Image) -> int:
    """Return the orientation in a PIL image's EXIF or XMP, 1 where there is none or none that can be read."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # EXIF is written by cameras and editors of every kind; a broken one turns nothing
        return 1
    return found if found in range(1, 9) else 1


def _read_deep_png(content: bytes) -> Samples:
    import imagecodecs

    check_size(*(int.from_bytes(content[at : at + 4], "big") for at in (16, 20)))
    values = np.atleast_3d(imagecodecs.png_decode(content))
    orientation = 1
    if any(chunk in content for chunk in _PNG_CHUNKS_OF_EXIF):
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            orientation = orientation_of(image)
    bands = values.shape[2]
    return Samples(values, alpha=bands - 1 if bands in (2, 4) else None, orientation=orientation)


def _read_jpeg_2000(file: BinaryIO) -> Samples | None:
    """Read a JPEG 2000 image whose SIZ marker promises more than Pillow gives: depth, sign or number of bands."""
    content = file.read()
    file.seek(0)
    start = content.find(_CODESTREAM)
    length = (
        int.from_bytes(content[start - 8 : start - 4], "big") if content[start - 4 : start] == b"jp2c" else 0
    )
    whole = (
        content[: start - 8 + length] if length > 1 else content.rstrip(b"\0")
    )  # 0 and 1: to the file's end
    if start < 0 or not whole.endswith(_CODESTREAM_END) or len(whole) < start - 8 + length:
        raise UserError("image does not open (image file is truncated)")
    width, height, left, top = (
        int.from_bytes(content[at : at + 4], "big") for at in range(start + 8, start + 24, 4)
    )
    bands = int.from_bytes(content[start + 40 : start + 42], "big")
    check_size(width - left, height - top, bands)
    depths = content[start + 42 : start + 42 + 3 * bands : 3]
    if bands <= 4 and all(depth <= 7 for depth in depths):  # the top bit is the sign
        return None
    import imagecodecs

    return Samples(np.atleast_3d(imagecodecs.jpeg2k_decode(content)))


def _read_tiff(file: BinaryIO) -> Samples:
    """Read the first image of a TIFF; pages that their writer declared to be one stack are its bands."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters of its complaints is raised below
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        check_size(page.imagewidth, page.imagelength * page.imagedepth, page.samplesperpixel)
        stack = _stack(tiff) if page.samplesperpixel == 1 else None
        if stack is not None:
            check_size(page.imagewidth, page.imagelength, stack.shape[0])
        if page.imagedepth > 1:
            raise UserError("image does not open (a volume; wanted rows, columns and bands)")
        if page.compression == _LERC and page.bitspersample not in (8, 16, 32, 64):
            raise UserError(
                f"image does not open (LERC of {page.bitspersample} bits; write it without NBITS)"
            )
        for piece in [page] if stack is None else stack.pages:
            _check_whole(piece, file)
        values = _page_values(page) if stack is None else np.moveaxis(stack.asarray(maxworkers=1), 0, -1)
        if values.dtype.kind not in "buif":
            raise UserError(f"image does not open (samples of {values.dtype}; wanted whole or real numbers)")
        valid = None if values.dtype in (bool, np.uint8) else _valid(tiff, page, values)
        tag = page.tags.get(ORIENTATION)
        orientation = tag.value if tag is not None and tag.value in range(1, 9) else 1
        return _with_colours(page, Samples(values, valid, None, orientation))


def _stack(tiff: Any) -> Any:
    """Return the series of pages that a TIFF declares to be one array of bands, rows and columns, or None."""
    if not (tiff.is_shaped or tiff.is_imagej or tiff.is_ome):
        return None
    series = tiff.series[0]
    declared = tiff.shaped_metadata[0].get("shape") if tiff.shaped_metadata else None
    if declared is not None and math.prod(declared) != series.size:
        raise UserError("image does not open (pages are missing, the file is truncated)")
    return series if len(series.axes) == 3 and series.axes.endswith("YX") else None


def _check_whole(page: Any, file: BinaryIO) -> None:
    """Refuse a page whose strips or tiles are not all in the file."""
    end = file.seek(0, io.SEEK_END)
    if page is None:  # of a series in one piece
        return
    pieces = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(pieces) < math.prod(page.chunked) or any(offset + count > end for offset, count in pieces):
        raise UserError("image does not open (image file is truncated)")


def _page_values(page: Any) -> Array:
    """Return the samples of a page, (H, W, C)."""
    values: Array = page.asarray(squeeze=False, maxworkers=1)  # (C, depth, H, W, 1) or (1, depth, H, W, C)
    return values[0, 0] if values.shape[0] == 1 else np.moveaxis(values[:, 0, :, :, 0], 0, -1)


def _valid(tiff: Any, page: Any, values: Array) -> Mask | None:
    """Return where a TIFF has data, by GDAL's tag and by its mask page."""
    valid: Mask | None = None
    tag = page.tags.get(_NODATA)
    nodata = None if tag is None else _number(str(tag.value).strip("\0 "), values.dtype)
    if nodata is not None:
        valid = values != nodata
    for other in tiff.pages[1:]:
        if other.subfiletype & 5 == 4 and (other.imagelength, other.imagewidth) == values.shape[:2]:
            shown = _page_values(other) > 0
            return shown if valid is None else valid & shown
    return valid


def _number(text: str, kind: np.dtype[Any]) -> np.generic | None:
    """Return the value of a tag as a sample; None if it is no number, or none that a sample can be."""
    try:
        if kind.kind == "f":
            with np.errstate(over="ignore"):
                return kind.type(float(text))
        return kind.type(int(text) if text.lstrip("-").isdecimal() else int(float(text)))
    except (ValueError, OverflowError):
        return None


def _with_colours(page: Any, samples: Samples) -> Samples:
    """Make the samples of a TIFF page red, green, blue and others, or grey and others; find its transparency."""
    from tifffile import PHOTOMETRIC

    kind, values = page.photometric, samples.values
    extra = page.extrasamples
    inks = values.shape[2] - len(extra)
    alpha = next((inks + place for place, meaning in enumerate(extra) if meaning in (1, 2)), None)
    few = page.bitspersample < 8 and kind != PHOTOMETRIC.PALETTE
    if few and values.dtype in (bool, np.uint8):
        values = np.rint(values * (255 / (2**page.bitspersample - 1))).astype(np.uint8)
    colours = values[:, :, :inks]
    if kind == PHOTOMETRIC.MINISWHITE:
        colours = ~colours if colours.dtype.kind == "u" else -colours.astype(np.float64)
    elif kind == PHOTOMETRIC.PALETTE and inks == 1:
        table = page.colormap if page.colormap.max() < 256 else page.colormap >> 8
        colours = np.moveaxis(table[:, colours[:, :, 0]], 0, -1).astype(np.uint8)
    elif kind == PHOTOMETRIC.SEPARATED and inks == 4 and colours.dtype.kind == "u":
        colours = _ink_to_light(colours)
    elif kind == PHOTOMETRIC.YCBCR and (page.compression not in _JPEG_COMPRESSIONS or page.planarconfig == 2):
        subsampling = page.tags.get(_SUBSAMPLING)
        if (
            colours.dtype != np.uint8
            or inks != 3
            or (subsampling is not None and subsampling.value != (1, 1))
        ):
            raise UserError(
                "image does not open (YCbCr with subsampled colour, or deep, and not JPEG; convert it to RGB)"
            )
        colours = np.asarray(Image.fromarray(np.ascontiguousarray(colours), "YCbCr").convert("RGB"))
    elif kind not in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.MASK, PHOTOMETRIC.YCBCR):
        name = getattr(kind, "name", kind)
        raise UserError(
            f"image does not open ({inks} samples a pixel of colour space {name}; convert it to RGB)"
        )
    if alpha is not None and extra[alpha - inks] == 1:
        colours = _unmultiplied(colours, values[:, :, alpha : alpha + 1])
    if alpha is not None:
        alpha += colours.shape[2] - inks
    valid = samples.valid
    if valid is not None and colours.shape[2] != inks:
        valid = np.asarray(valid.all(axis=2, keepdims=True))
    others = values[:, :, inks:].astype(colours.dtype, copy=False)
    merged = np.concatenate([colours, others], axis=2) if others.shape[2] else colours
    return Samples(merged, valid, alpha, samples.orientation)


def _ink_to_light(inks: Array) -> Array:
    """Cyan, magenta, yellow and black (H, W, 4), unsigned, to red, green and blue of the same depth."""
    if inks.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(inks), "CMYK").convert("RGB"))
    full = float(np.iinfo(inks.dtype).max)
    light = (full - inks.astype(np.float64)) / full
    return np.rint(light[:, :, :3] * light[:, :, 3:] * full).astype(inks.dtype)


def _unmultiplied(colours: Array, alpha: Array) -> Array:
    """Colours that were multiplied by their transparency as they were before; where it is 0, as they are."""
    if colours.dtype.kind == "u":
        full = int(np.iinfo(colours.dtype).max)
        plain = np.minimum(colours.astype(np.uint64) * full // np.maximum(alpha, 1), full)
    else:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            plain = colours / alpha
    return np.where(alpha != 0, plain, colours).astype(colours.dtype)
