"""Image files of every kind, each with the pixels that it should open to: written here, read by GDAL where it can.

A cell is one choice of container, depth, photometric interpretation, planes, alpha, palette, compression, nodata and
orientation. Letters: H rows, W columns, C bands.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

from tests.processors.pictures import (
    Array,
    Cell,
    Made,
    by_cmyk,
    by_gdal,
    samples,
    scene,
    shown_of,
    stretched,
    upright,
)
from tests.processors.tiffs import TIFF, make_tiff

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
            shown_of({"kind": "rgb", "depth": depth}, values, np.ones(values.shape, bool), None),
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
