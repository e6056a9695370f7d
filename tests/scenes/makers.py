"""Rasters, and a captioner of no weights, for tests of scenes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from rasterio.shutil import copy
from rasterio.transform import from_origin

from bita.inference.captions import Caption
from bita.processors.rgb import ImageOpener
from bita.scenes.rasters import View

UTM = {"crs": "EPSG:32633", "transform": from_origin(390_000, 5_820_000, 10, 10)}


def raster(path: Path, values: npt.NDArray[Any], **profile: Any) -> Path:
    """Write bands (B, H, W) as a GeoTIFF, or what `driver` names."""
    bands, height, width = values.shape
    size = {"width": width, "height": height, "count": bands, "dtype": values.dtype.name}
    with rasterio.open(path, "w", **({"driver": "GTiff"} | size | profile)) as file:
        file.write(values)
    return path


def nested(path: Path, folder: Path) -> Path:
    """Write `mosaic.vrt`, whose part a raster is, and `nested.vrt`, whose part that is; the path of this one."""
    copy(path, folder / "mosaic.vrt", driver="VRT")
    text = (folder / "mosaic.vrt").read_text()
    outer = re.sub("(<SourceFilename[^>]*>)[^<]*", r"\g<1>mosaic.vrt", text)
    (folder / "nested.vrt").write_text(outer)
    return folder / "nested.vrt"


def noise(bands: int = 3, height: int = 100, width: int = 150, kind: str = "uint16") -> npt.NDArray[Any]:
    return np.random.default_rng(0).integers(1, 250, (bands, height, width)).astype(kind)


class Colours:
    """A captioner that says the mean colour of an image; `after` images it raises, as a kill would."""

    hash = "0123456789abcdef"
    stage1 = None
    model = SimpleNamespace(device=torch.device("cpu"))

    def __init__(self, after: int | None = None, confident: bool = True) -> None:
        self.left, self.confident = after, confident
        self.seen: list[npt.NDArray[np.uint8]] = []

    def stream(self, images: Iterable[View], *, batch_size: int, **search: Any) -> Iterator[Caption]:
        for image in images:
            if self.left == len(self.seen):
                raise KeyboardInterrupt
            pixels = np.asarray(image.open_with(ImageOpener()))
            self.seen.append(pixels)
            red, green, blue = pixels.mean((0, 1)).round(3).tolist()
            share = red / 255 if self.confident else None
            text = f"red {red}, green {green}, blue {blue}"
            yield Caption(
                caption=text,
                candidates=[text, "“grün”, too"],
                log_probability=-red,
                tokens=3,
                confidence=share,
                model=self.hash,
            )
