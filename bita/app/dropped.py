"""What was dropped on the page, and windows of it.

A box is (left, top, right, bottom) in pixels, the right column and the lower row not in it. Files are opened when they
are looked at, and nothing of them stays in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bita.app.engine import MEBIBYTE, Engine, not_kept
from bita.errors import UserError
from bita.magic import TIFF
from bita.processors.samples import TooLargeError
from bita.scenes.rasters import Scene
from bita.scenes.windows import Tile

Box = tuple[int, int, int, int]

LONGEST = 1024
"""Side in pixels to which a large window of a scene is reduced."""
MAX_BLOCK = 256 * MEBIBYTE
"""What may have to be decoded for one pixel of a scene: a small file may promise any size."""
MAX_READ = 40
"""Images of most pixels that a scene, or its coarsest overview, may be as large as: all of it is read to be shown."""


@dataclass(frozen=True)
class Dropped:
    """A file on the page: an image, which is opened whole.

    Attributes:
        path: of the file.
        size: width and height in pixels.
        engine: whose limits count.
    """

    path: Path
    size: tuple[int, int]
    engine: Engine

    @classmethod
    def open(cls, path: Path, engine: Engine) -> Dropped:
        """Open a file: TIFFs that have a place on the ground, or are too large to be opened whole, are scenes.

        Raises:
            UserError: it is gone, does not open, or is too large.
        """
        if not path.is_file():
            raise not_kept(path)
        with path.open("rb") as file:
            is_tiff = file.read(4) in TIFF  # by content: a VRT would read other files of this machine
        return (_scene(path, engine) if is_tiff else None) or cls(path, engine.open_file(path).size, engine)

    @property
    def whole(self) -> Box:
        """The box around everything."""
        return (0, 0, *self.size)

    @property
    def captioned_whole(self) -> bool:
        """Whether one caption can say what all of it shows."""
        return True

    def window(self, box: Box) -> Image.Image:
        """Return what is in a box: 8-bit RGB.

        Raises:
            UserError: the file is gone, or broken.
        """
        image = self.engine.open_file(self.path)
        return image if box == self.whole else image.crop(box)

    def where(self, box: Box) -> str:
        """Return what a box is, in words."""
        if box == self.whole:
            return f"{self.path.name}, {box[2]} × {box[3]} px"
        return (
            f"{self.path.name}, {box[2] - box[0]} × {box[3] - box[1]} px from column {box[0]}, row {box[1]}"
        )

    def box_of(self, sides: tuple[float, ...], least: int) -> Box:
        """Return the box whose sides are shares of the picture, as they were drawn.

        A click, which is a box without extent, gives `least` pixels around it; so does a box of a few pixels.
        """
        ends: list[tuple[int, int]] = []
        for low, high, size in zip(sides[:2], sides[2:], self.size, strict=True):
            start, end = round(low * size), round(high * size)
            if end - start < 8:
                start = min(max(0, (start + end - least) // 2), max(0, size - least))
                end = min(size, start + least)
            ends.append((start, end))
        return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


@dataclass(frozen=True)
class DroppedScene(Dropped):
    """A scene, of which windows are read; with a side above `LONGEST` they are reduced to that."""

    @property
    def captioned_whole(self) -> bool:
        """See `Dropped.captioned_whole`."""
        return max(self.size) <= LONGEST

    def window(self, box: Box) -> Image.Image:
        """See `Dropped.window`."""
        with self._opened() as scene:
            left, top, right, bottom = self._in_raster(box, scene)
            width, height = right - left, bottom - top
            longest = max(width, height)
            side = min(longest, LONGEST)
            seen = scene.view(Tile(0, left, top, width, height), (longest, longest), side)
        rows, columns = (max(1, round(size * side / longest)) for size in (height, width))
        return Image.fromarray(seen.pixels[:rows, :columns])

    def where(self, box: Box) -> str:
        """See `Dropped.where`; with the place on the ground."""
        with self._opened() as scene:
            left, top, right, bottom = self._in_raster(box, scene)
            if scene.where.lonlat is None:
                return super().where(box)
            middle = np.array([[(left + right) / 2, (top + bottom) / 2]])
            ((east, north),) = scene.where.to_lonlat(scene.where.to_map(middle))
        if not np.isfinite((east, north)).all():  # off the earth
            return super().where(box)
        place = f"{abs(north):.5f}° {'S' if north < 0 else 'N'}, {abs(east):.5f}° {'W' if east < 0 else 'E'}"
        return f"{super().where(box)}, around {place}"

    def _in_raster(self, box: Box, scene: Scene) -> Box:
        """Return a box of the picture as one of the raster, whose rows may go from south to north."""
        left, top, right, bottom = box
        return (left, self.size[1] - bottom, right, self.size[1] - top) if scene.where.mirrored else box

    def _opened(self) -> Scene:
        if not self.path.is_file():
            raise not_kept(self.path)
        return Scene(self.path)


def _scene(path: Path, engine: Engine) -> DroppedScene | None:
    """Open a TIFF as a scene; None where it is an image to be opened whole.

    Raises:
        UserError: it does not open as either, or is too large.
    """
    limits, size = engine.limits, path.stat().st_size
    if size > limits.scene_bytes:
        most = limits.scene_bytes / MEBIBYTE
        raise TooLargeError(
            f"{path.name}: has {size / MEBIBYTE:,.0f} MiB; {most:,.0f} are taken of a scene at most"
        )
    try:
        with Scene(path) as scene:
            width, height = scene.size
            large = size > limits.image_bytes or width * height > limits.image_pixels
            if scene.where.lonlat is None and not large:
                return None
            coarse = scene.coarsest
            if coarse[0] * coarse[1] > MAX_READ * limits.image_pixels or scene.block_bytes > MAX_BLOCK:
                raise TooLargeError(
                    f"{path.name}: scene is refused ({width} × {height} pixels that cannot be read in parts; tile it, "
                    "with overviews: gdal_translate -of COG)"
                )
            return DroppedScene(path, scene.size, engine)
    except TooLargeError:
        raise
    except UserError:
        if size <= limits.image_bytes:
            return None  # an image, or what opening it says
        raise UserError(f"{path.name}: does not open as a scene, and is too large for an image") from None
