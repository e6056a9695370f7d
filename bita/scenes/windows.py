"""How a raster is cut into tiles.

Tiles are numbered from 0, row by row. At the right and the lower edge, where the last tile would reach over:

shift   it is moved back so that it ends at the edge; it then overlaps its neighbour, and every pixel is seen
pad     it stays, and what is beyond the edge is black; its polygon ends at the edge
drop    it is left out

A raster that is smaller than a tile is one tile, padded, under each of the rules. What is left beyond the last whole
tile makes none where it is less than a hundredth of one: its caption would be the neighbour's again, or one of black.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Edge = Literal["shift", "pad", "drop"]
EDGES: tuple[Edge, ...] = get_args(Edge)
_SLIVER = 100


@dataclass(frozen=True)
class Tile:
    """A window of a raster, in its pixels; a padded one holds only what is inside.

    Attributes:
        number: from 0, row by row.
        x: first column.
        y: first row.
        width: columns.
        height: rows.
    """

    number: int
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Grid:
    """All tiles of a raster; `grid[number]` is one of them.

    Attributes:
        size: (width, height) of the raster in pixels.
        window: (width, height) of a tile in the raster's pixels.
        step: from one tile to the next, across and down.
        edge: see the module.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    step: tuple[int, int]
    edge: Edge = "shift"

    @property
    def counts(self) -> tuple[int, int]:
        """How many tiles there are across and down."""
        across, down = (
            self._count(size, window, step)
            for size, window, step in zip(self.size, self.window, self.step, strict=True)
        )
        return across, down

    def _count(self, size: int, window: int, step: int) -> int:
        beyond = max(0, size - window)
        if beyond % step * _SLIVER < window:
            beyond -= beyond % step
        if self.edge == "drop":
            return 1 + beyond // step
        return min(1 - (-beyond // step), -(-size // step))

    def __len__(self) -> int:
        across, down = self.counts
        return across * down

    def __getitem__(self, number: int) -> Tile:
        if not 0 <= number < len(self):
            raise IndexError(number)
        down, across = divmod(number, self.counts[0])
        starts = []
        for place, size, window, step in zip((across, down), self.size, self.window, self.step, strict=True):
            last = max(0, size - window) if self.edge == "shift" else size
            starts.append(min(place * step, last))
        ends = [
            min(start + window, size)
            for start, window, size in zip(starts, self.window, self.size, strict=True)
        ]
        return Tile(number, starts[0], starts[1], ends[0] - starts[0], ends[1] - starts[1])
