"""Which tiles of a scene are captioned, and at which ground sampling distance."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Self, TypeVar

from bita.errors import UserError
from bita.scenes.rasters import Scene, View
from bita.scenes.windows import Edge, Grid

A = TypeVar("A")
_WAIT = 0.1
"""Seconds after which who waits looks whether there is still something to wait for."""


@dataclass(frozen=True)
class Tiling:
    """The tiles of a scene.

    Attributes:
        grid: in the scene's pixels.
        side: of a tile's image in pixels.
        gsd: metres on the ground that a pixel of that image covers, at the scene's middle; None: unknown.
    """

    grid: Grid
    side: int
    gsd: float | None

    @classmethod
    def of(cls, scene: Scene, side: int, stride: int, gsd: float | None, edge: Edge) -> Tiling:
        """Cut a scene into tiles.

        Args:
            scene: to be cut.
            side: of a tile's image in pixels.
            stride: from one tile to the next, in such pixels.
            gsd: metres that a pixel shall cover; None: as in the scene. A tile is a whole number of the scene's pixels,
                so that the distance used may differ a little; it is `Tiling.gsd`.
            edge: see `bita.scenes.windows`.

        Raises:
            UserError: a distance is asked for, and the scene's own is not known, or it is out of proportion.
        """
        pixel = scene.where.pixel_size()
        scales = (1.0, 1.0)
        if gsd is not None:
            if pixel is None:
                raise UserError(f"{scene.path}: --gsd needs a scene whose pixels have a known size in metres")
            scales = (gsd / pixel[0], gsd / pixel[1])
        windows, steps = ([round(length * scale) for scale in scales] for length in (side, stride))
        if min(*windows, *steps) < 1 or max(windows) > max(*scene.size, side) * side:
            raise UserError(f"{scene.path}: --gsd {gsd:g} makes no tile of pixels of {_said(pixel)}")
        if pixel is not None:
            across, down = (own * window / side for own, window in zip(pixel, windows, strict=True))
            gsd = round((across * down) ** 0.5, 6)
        return cls(Grid(scene.size, (windows[0], windows[1]), (steps[0], steps[1]), edge), side, gsd)

    def views(self, scene: Scene, first: int, min_valid: float) -> Iterator[View]:
        """Read the tiles from number `first` on that have data, on at least a share `min_valid` of their pixels."""
        tiles = (self.grid[number] for number in range(first, len(self.grid)))
        for view in scene.views(tiles, self.grid.window, self.side):
            if view.valid > 0 and view.valid >= min_valid:
                yield view


def _said(pixel: tuple[float, float] | None) -> str:
    return " × ".join(f"{length:g}" for length in pixel or ()) + " m"


def batches(items: Iterator[A], size: int) -> Iterator[list[A]]:
    """Return lists of `size` items, the last of what is left."""
    while part := list(islice(items, size)):
        yield part


class Ahead(Generic[A]):
    """Items that a thread gets while others are at work, to be iterated inside a `with`; at its end the thread is gone.

    Args:
        items: what it raises is raised by the iteration.
        count: how many wait at most.
    """

    def __init__(self, items: Iterator[A], count: int) -> None:
        self._items = items
        self._ready: queue.Queue[tuple[str, Any]] = queue.Queue(count)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tiles ahead", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[A]:
        while not self._stop.is_set():
            try:
                kind, value = self._ready.get(timeout=_WAIT)
            except queue.Empty:
                continue
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value

    def _work(self) -> None:
        try:
            for item in self._items:
                if not self._put("item", item):
                    return
            self._put("end", None)
        except BaseException as error:
            self._put("error", error)

    def _put(self, kind: str, value: Any) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put((kind, value), timeout=_WAIT)
                return True
            except queue.Full:
                continue
        return False
