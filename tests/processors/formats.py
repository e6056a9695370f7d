"""Image files of every kind, each with the pixels that it should open to: written here, read by GDAL where it can.

A cell is one choice of container, depth, photometric interpretation, planes, alpha, palette, compression, nodata and
orientation. Letters: H rows, W columns, C bands.
"""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import rasterio
import tifffile
from PIL import Image

Array = npt.NDArray[Any]
Cell = dict[str, Any]

FULL = {"bit": 1, "bits2": 3, "bits4": 15, "u1": 255}
TIFF_BANDS = {
    "grey": 1,
    "white": 1,
    "rgb": 3,
    "rgba": 4,
    "premultiplied": 4,
    "rgbn": 4,
    "grey+alpha": 2,
    "five": 5,
    "palette": 1,
    "cmyk": 4,
    "ycbcr": 3,
    "stack": 4,
}
TIFF: dict[str, list[Any]] = {
    "container": ["tiff"],
    "kind": list(TIFF_BANDS),
    "depth": [
        "u1",
        "u1",
        "u1",
        "u2",
        "u2",
        "u4",
        "i1",
        "i2",
        "i4",
        "f2",
        "f4",
        "f8",
        "bit",
        "bits2",
        "bits4",
        "bits12",
    ],
    "planar": ["contig", "separate"],
    "tile": [None, (16, 16)],
    "compression": [
        "none",
        "none",
        "lzw",
        "deflate",
        "packbits",
        "zstd",
        "lzma",
        "jpeg",
        "webp",
        "jpeg2000",
        "lerc",
        "jpegxl",
    ],
    "predictor": [False, True],
    "byteorder": ["<", ">"],
    "bigtiff": [False, True],
    "nodata": [None, None, "-9999", "0", "7", "nan", "mask page"],
    "orientation": [1, 1, *range(1, 9)],
    "pages": [1, 2],
}
PNG: dict[str, list[Any]] = {
    "container": ["png"],
    "kind": ["grey", "rgb", "palette", "grey+alpha", "rgba"],
    "depth": [1, 2, 4, 8, 16],
    "interlaced": [False, True],
    "transparent": [False, True],
    "orientation": [1, *range(1, 9)],
}
OTHER: dict[str, list[Any]] = {
    "container": ["jpeg", "jpeg", "mpo", "jp2", "j2k", "webp", "bmp", "gif", "avif"],
    "kind": ["grey", "rgb", "rgba", "palette", "cmyk", "ycck", "five"],
    "depth": ["u1", "u1", "u2", "i2", "bits12"],
    "progressive": [False, True],
    "animated": [False, True],
    "orientation": [1, *range(1, 9)],
}
SUFFIXES = ("", ".jpg", ".png", ".tif", ".dat", ".JPEG", ".webp", ".gif")


@dataclass
class Made:
    """A file, and what it shows."""

    cell: Cell
    content: bytes
    pixels: Array
    """(H, W, 3) uint8, upright."""
    tolerance: int = 0
    """Largest difference that a lossy decoder may make."""


def draw(table: dict[str, list[Any]], rng: random.Random) -> Cell:
    return {factor: rng.choice(values) for factor, values in table.items()}


def make(rng: random.Random) -> Made:
    """A file of a random cell; cells that no writer or standard has are drawn again."""
    table, maker = rng.choice([(TIFF, make_tiff), (TIFF, make_tiff), (PNG, make_png), (OTHER, make_other)])
    shape = (
        (rng.randint(1, 45), rng.randint(1, 45))
        if rng.random() < 0.2
        else (rng.randint(18, 45), rng.randint(18, 45))
    )
    while True:
        made = maker(draw(table, rng), shape, rng.randrange(2**32))
        if made is not None:
            return made


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


def make_tiff(cell: Cell, shape: tuple[int, int], seed: int) -> Made | None:
    """A TIFF; what tifffile does not write there is not."""
    kind, depth, compression = cell["kind"], cell["depth"], cell["compression"]
    few, lossy = depth in ("bit", "bits2", "bits4", "bits12"), compression == "jpeg"
    if (
        (few and kind not in ("grey", "white", "palette"))
        or (kind == "palette" and depth not in ("u1", "u2", "bits2", "bits4"))
        or (kind in ("cmyk", "premultiplied") and depth not in ("u1", "u2"))
        or (kind == "ycbcr" and depth != "u1")
        or (kind == "ycbcr" and compression == "jpeg" and cell["planar"] == "separate")
        or (kind == "white" and depth[0] != "u" and not few)
        or (lossy and (depth != "u1" or kind not in ("grey", "rgb", "ycbcr", "cmyk")))
        or (few and compression not in ("none", "lzw", "deflate", "packbits"))
        or (compression == "webp" and kind not in ("rgb", "rgba"))
        or (
            compression == "jpeg2000"
            and (cell["byteorder"] == ">" or depth not in ("u1", "u2") or kind not in ("grey", "rgb"))
        )
        or (
            compression == "lerc" and depth[0] == "f"
        )  # tifffile and GDAL give its invalid values different numbers
        or (depth == "bits12" and cell["byteorder"] == ">")
        or (kind == "stack" and (min(shape) < 2 or cell["pages"] > 1 or cell["nodata"] == "mask page"))
    ):
        return None
    bands = TIFF_BANDS[kind]
    values = samples(depth, shape, bands, seed)
    generator = np.random.default_rng(seed)
    hole = np.zeros(values.shape, bool)
    hole[: shape[0] // 3, : shape[1] // 2, : max(bands - 1, 1)] = True
    hole &= generator.random(values.shape) < 0.9
    nodata = cell["nodata"]
    if (
        nodata is not None
        and nodata[-1].isdigit()
        and not lossy
        and np.can_cast(np.min_scalar_type(int(nodata)), values.dtype)
        and not few
    ):
        values[hole] = int(nodata)
    elif nodata == "nan" and depth[0] == "f":
        values[hole] = np.nan
    if kind in ("rgba", "premultiplied", "grey+alpha"):
        values[:, :, -1][np.isnan(values[:, :, -1].astype(float))] = 1
        values[: shape[0] // 4, :, -1] = 0
        if kind == "premultiplied":
            full = np.iinfo(values.dtype).max
            values[shape[0] // 4 :, :, -1] = generator.integers(
                1, full, values[shape[0] // 4 :, :, -1].shape, endpoint=True
            )
            values[:, :, :3] = np.minimum(values[:, :, :3], values[:, :, 3:])
    table = None
    if kind == "palette":
        size = {"bits2": 4, "bits4": 16, "u1": 256, "u2": 65536}[depth]
        table = generator.integers(0, 256, (3, size)).astype(np.uint16) * 257
    extratags: list[Any] = []
    if cell["orientation"] != 1:
        extratags.append((274, "H", 1, cell["orientation"], True))
    if kind == "ycbcr":
        extratags.append((530, "H", 2, (1, 1), True))
    if nodata not in (None, "mask page"):
        extratags.append((42113, "s", 0, nodata, True))
    photometric = {"white": "miniswhite", "cmyk": "separated", "ycbcr": "ycbcr", "palette": "palette"}.get(
        kind, "minisblack"
    )
    photometric = "rgb" if kind.startswith(("rgb", "pre")) else photometric
    extra = {"rgba": [2], "premultiplied": [1], "rgbn": [0], "grey+alpha": [2], "five": [0] * 4}.get(kind)
    stored = values[:, :, 0] if bands == 1 else values
    planar = cell["planar"] if bands > 1 and kind != "stack" else None
    if planar == "separate" or kind == "stack":
        stored = np.moveaxis(stored, -1, 0)
    options: dict[str, Any] = {
        "photometric": photometric,
        "planarconfig": planar,
        "extrasamples": extra,
        "colormap": table,
    }
    options |= {
        "tile": cell["tile"],
        "compression": compression,
        "extratags": extratags,
        "bitspersample": int(depth[4:]) if depth.startswith("bits") else None,
    }
    options |= {
        "predictor": cell["predictor"] and compression in ("lzw", "deflate", "zstd", "lzma"),
        "metadata": {} if kind == "stack" else None,
    }
    if compression in ("webp", "jpegxl"):
        options["compressionargs"] = {"lossless": True}
    if lossy and kind == "ycbcr":
        options["subsampling"] = (1, 1)
    out = io.BytesIO()
    mask = generator.random(shape) < 0.8
    try:
        with tifffile.TiffWriter(out, bigtiff=cell["bigtiff"], byteorder=cell["byteorder"]) as file:
            file.write(stored, **options)
            if nodata == "mask page":
                file.write(mask, photometric="mask", subfiletype=4, metadata=None)
            if cell["pages"] > 1:
                file.write(np.zeros((9, 9), np.uint8), metadata=None)
    except Exception:
        return None
    content = out.getvalue()
    valid = np.ones(values.shape, bool)
    if nodata == "mask page":
        valid &= mask[:, :, None]
    elif nodata is not None and nodata[-1].isdigit():
        valid &= values != int(nodata)
    alpha = values[:, :, -1:] if kind in ("rgba", "grey+alpha", "premultiplied") else None
    if alpha is not None:
        valid &= alpha != 0
    if (
        lossy and planar != "separate" and not (cell["bigtiff"] and cell["byteorder"] == ">")
    ):  # libtiff's decoder is ours to the bit, GDAL's own is not
        with Image.open(io.BytesIO(content)) as image:
            return Made(cell, content, np.asarray(image.convert("RGB")), 1)
    read, shown, tolerance = by_gdal(content), cell, 30 if lossy else 1 if kind in ("cmyk", "ycbcr") else 0
    if kind in ("cmyk", "ycbcr") and depth == "u1" and (read is None or cell["orientation"] > 1):
        tolerance = max(tolerance, 60 * lossy)  # GDAL shows their colours, but turned in its own way
    elif kind in ("cmyk", "ycbcr") and depth == "u1":
        assert read is not None
        values, shown = read[0][:, :, :3], cell | {"kind": "rgb"}
    elif read is not None and kind != "stack":  # of which GDAL reads the first page
        if not lossy:
            np.testing.assert_array_equal(read[0], values, f"GDAL reads what was written: {cell}")
        values = read[0]
        if alpha is None or (
            depth in ("u1", "u2") and nodata is None
        ):  # GDAL makes a byte of alpha, or looks at one of both
            valid = read[1]
    return Made(
        cell, content, upright(shown_tiff(shown, values, valid, table), cell["orientation"]), tolerance
    )


def shown_tiff(cell: Cell, values: Array, valid: Array, table: Array | None) -> Array:
    """What a TIFF's samples (H, W, C) show, (H, W, 3)."""
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


def make_png(cell: Cell, shape: tuple[int, int], seed: int) -> Made | None:
    """A PNG, written here: of every kind and depth that there is, with Adam7 interlacing, tRNS and eXIf."""
    kind, depth = cell["kind"], cell["depth"]
    colour = {"grey": 0, "rgb": 2, "palette": 3, "grey+alpha": 4, "rgba": 6}[kind]
    if depth not in {0: (1, 2, 4, 8, 16), 3: (1, 2, 4, 8)}.get(colour, (8, 16)) or (
        cell["transparent"] and colour > 3
    ):
        return None
    full = 2**depth - 1
    low, high = (200, 3005) if depth == 16 else (0, full)
    values = np.rint(scene(shape, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour], low, high, seed)).astype("u2")
    generator = np.random.default_rng(seed)
    valid = np.ones(shape, bool)
    chunks = []
    if colour == 3:
        table = generator.integers(0, 256, (full + 1, 3), dtype=np.uint8)
        chunks.append((b"PLTE", table.tobytes()))
        if cell["transparent"]:
            chunks.append((b"tRNS", generator.integers(0, 256, full + 1, dtype=np.uint8).tobytes()))
    elif cell["transparent"]:
        key = values[shape[0] // 2, shape[1] // 2]
        chunks.append((b"tRNS", key.astype(">u2").tobytes()))
        valid = ~(values == key).all(axis=2)
    elif colour > 3:
        values[: shape[0] // 4, :, -1] = 0
        valid = values[:, :, -1] > 0
    if cell["orientation"] > 1:
        chunks.append(
            (b"eXIf", b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHHI", 274, 3, 1, cell["orientation"], 0, 0))
        )
    passes = [(0, 0, 1, 1)]
    if cell["interlaced"]:
        passes = [
            (0, 0, 8, 8),
            (0, 4, 8, 8),
            (4, 0, 8, 4),
            (0, 2, 4, 4),
            (2, 0, 4, 2),
            (0, 1, 2, 2),
            (1, 0, 2, 1),
        ]
    rows = b"".join(
        b"\0" + packed(row, depth)
        for top, left, down, right in passes
        for row in values[top::down, left::right]
        if row.size
    )
    head = struct.pack(">IIBBBBB", shape[1], shape[0], depth, colour, 0, 0, cell["interlaced"])
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )
    read = by_gdal(content)
    if read is not None:
        np.testing.assert_array_equal(read[0], values, f"GDAL reads what was written: {cell}")
    if colour == 3:
        pixels = table[values[:, :, 0]]
    else:
        picked = [0, 1, 2] if values.shape[2] > 2 else [0, 0, 0]
        whole = np.repeat(valid[:, :, None], 3, axis=2)
        pixels = (
            stretched(values[:, :, picked], whole)
            if depth == 16
            else (values[:, :, picked] * (255 // full)).astype("u1")
        )
    return Made(cell, content, upright(pixels, cell["orientation"]))


def packed(row: Array, depth: int) -> bytes:
    """A PNG's row of samples (W, C)."""
    if depth == 16:
        return row.astype(">u2").tobytes()
    bits = np.unpackbits(row.astype("u1").reshape(-1, 1), axis=1)[:, 8 - depth :]
    return np.packbits(bits).tobytes()


def make_other(cell: Cell, shape: tuple[int, int], seed: int) -> Made | None:
    """A JPEG, JPEG 2000, WebP, BMP, GIF or AVIF file, written by Pillow or imagecodecs."""
    container, kind, depth, orientation = cell["container"], cell["kind"], cell["depth"], cell["orientation"]
    bands = {"grey": 1, "palette": 1, "rgba": 4, "cmyk": 4, "ycck": 4, "five": 5}.get(kind, 3)
    if container in ("jp2", "j2k"):
        if (
            kind in ("palette", "cmyk", "ycck")
            or orientation > 1
            or (kind == "five" and (depth == "i2" or min(shape) < 8))
        ):
            return None
        values = samples(depth, shape, bands, seed)
        content = bytes(
            imagecodecs.jpeg2k_encode(
                values[:, :, 0] if bands == 1 else values,
                codecformat=container,
                bitspersample=12 if depth == "bits12" else None,
            )
        )
        read = by_gdal(content)
        if read is not None:
            np.testing.assert_array_equal(read[0], values, f"GDAL reads what was written: {cell}")
        return Made(
            cell,
            content,
            shown_tiff({"kind": "rgb", "depth": depth}, values, np.ones(values.shape, bool), None),
        )
    if depth != "u1" or kind == "five" or (cell["animated"] and container not in ("gif", "webp")):
        return None
    modes = {
        "jpeg": ("grey", "rgb", "cmyk", "ycck"),
        "mpo": ("rgb",),
        "webp": ("rgb", "rgba"),
        "bmp": ("grey", "rgb", "palette"),
        "gif": ("grey", "palette"),
        "avif": ("rgb", "rgba"),
    }
    if kind not in modes[container] or (orientation > 1 and container in ("bmp", "gif", "avif")):
        return None
    values = samples("u1", shape, bands, seed)
    generator = np.random.default_rng(seed)
    out = io.BytesIO()
    exif = Image.Exif()
    exif[274] = orientation
    options: dict[str, Any] = {"exif": exif} if orientation > 1 else {}
    tolerance = 0
    if kind == "ycck":
        if orientation > 1:
            return None
        content = bytes(
            imagecodecs.jpeg8_encode(
                values, level=95, colorspace="CMYK", outcolorspace="YCCK", subsampling="444"
            )
        )
        inks = imagecodecs.jpeg8_decode(content, colorspace="YCCK", outcolorspace="CMYK")
        return Made(cell, content, np.rint(by_cmyk(1 - inks / 255) * 255).astype("u1"), 3)
    mode = {"grey": "L", "rgba": "RGBA", "cmyk": "CMYK", "palette": "P"}.get(kind, "RGB")
    image = Image.fromarray(values[:, :, 0] if bands == 1 else values, "L" if kind == "palette" else mode)
    pixels = values[:, :, [0, 0, 0] if bands == 1 else [0, 1, 2]]
    if kind == "palette":
        table = generator.integers(0, 256, (256, 3), dtype=np.uint8)
        image.putpalette(table.tobytes())
        pixels = table[values[:, :, 0]]
        if container == "gif":
            options["transparency"] = int(values[0, 0, 0])
    if container in ("jpeg", "mpo"):
        options |= {"quality": 95, "progressive": cell["progressive"], "subsampling": 0}
    elif container == "webp":
        options |= {"lossless": True, "exact": True}
    elif container == "avif":
        options |= {"quality": 100, "subsampling": "4:4:4"}
        tolerance = 24
    elif container == "gif":
        options |= {"optimize": False}
    if cell["animated"] or container == "mpo":
        options |= {
            "save_all": True,
            "append_images": [Image.new(mode, image.size, 7 if mode in "PL" else (1, 2, 3, 4)[: len(mode)])],
        }
    image.save(out, container.upper(), **options)
    content = out.getvalue()
    if container in ("jpeg", "mpo"):
        decoded = np.atleast_3d(imagecodecs.jpeg8_decode(content))
        if kind == "cmyk":
            inks = imagecodecs.jpeg8_decode(content, colorspace="CMYK", outcolorspace="CMYK")
            decoded = np.rint(by_cmyk(1 - inks / 255) * 255).astype("u1")
        pixels, tolerance = decoded[:, :, [0, 0, 0] if decoded.shape[2] == 1 else [0, 1, 2]], 3
    return Made(cell, content, upright(pixels, orientation), tolerance)
