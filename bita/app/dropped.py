"""What was dropped on the page, and windows of it.

A box is (left, top, right, bottom) in pixels, the right column and the lower row not in it. Files are opened when they
are looked at, and nothing of them stays in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bita.app.engine import Engine
from bita.errors import UserError

Box = tuple[int, int, int, int]


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
        """Open a file.

        Raises:
            UserError: it does not open, or is too large.
        """
        return cls(path, engine.open_file(path).size, engine)

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
        if not self.path.is_file():
            raise UserError(f"{self.path.name}: is not kept any more; drop it again")
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
