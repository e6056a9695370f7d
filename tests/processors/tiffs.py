"""TIFF files of every kind, each with the pixels that it should open to; letters as in pictures.py."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from tests.processors.pictures import (
    Cell,
    Made,
    by_gdal,
    samples,
    shown_of,
    upright,
)

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
    return Made(cell, content, upright(shown_of(shown, values, valid, table), cell["orientation"]), tolerance)
