"""`bita-search`: the images of a folder, or the tiles of a scene, that fit a text best."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from bita.errors import UserError
from bita.files import replacing, sha256
from bita.inference.aligner import Aligner
from bita.inference.pictures import sheet
from bita.inference.search import INDEX, Item, file_items, find, open_index, stat_of, update
from bita.inference.sources import find_images
from bita.processors.rgb import open_rgb
from bita.scenes.captioning import Wanted
from bita.scenes.command import CROP, wanted
from bita.scenes.layers import PLACE, SUFFIXES, Layer, place_of
from bita.scenes.rasters import Scene
from bita.scenes.vectors import Tiles, check_format, write_tiles

FOUND = Layer(
    "found",
    {
        **PLACE,
        "scene": "text",
        "query": "text",
        "rank": "int",
        "similarity": "float",
        "gsd": "float",
        "time": "time",
        "model": "text",
    },
    label='"rank"',
    shade="similarity",
)
Hit = tuple[str, float]
_EVERY = 0.5
"""Seconds."""


class Source(Protocol):
    """What can be searched."""

    index: Path

    def items(self) -> list[Item]:
        """Return all that can be found."""

    def picture(self, key: str) -> Image.Image:
        """Return one of them as 8-bit RGB."""


class FolderSource:
    """The images below a folder, each as a whole."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index = folder, folder / INDEX

    def items(self) -> list[Item]:
        """See `Source`; raises UserError where there is no image."""
        return list(file_items(find_images([str(self.folder)]), self.folder))

    def picture(self, key: str) -> Image.Image:
        """See `Source`."""
        return open_rgb(self.folder / key)


class SceneSource:
    """The tiles of an open scene.

    Args:
        scene: open as long as this is used.
        wanted: how it is cut.
    """

    def __init__(self, scene: Scene, wanted: Wanted) -> None:
        self.scene, self.wanted, self.tiling = scene, wanted, wanted.tiling(scene)
        self.index = scene.path.with_name(scene.path.name + INDEX)
        self.tiles = {f"{t.x},{t.y},{t.width},{t.height}": t for t in self._all()}

    def _all(self) -> Any:
        return (self.tiling.grid[number] for number in range(len(self.tiling.grid)))

    @cached_property
    def _cut(self) -> str:
        """What a tile's pixels depend on besides the file."""
        return f"{self.tiling.side} {self.tiling.gsd} {self.scene.bands} {self.wanted.min_valid}"

    @cached_property
    def _content(self) -> str:
        return f"{self._of_files(sha256)} {self._cut}"

    def _of_files(self, said: Callable[[Path], str]) -> str:
        """Return what is said of the scene's file, or where it is made of several a hash of what is said of each."""
        files = self.scene.files
        if len(files) == 1:
            return said(files[0])
        return hashlib.sha256("\n".join(f"{path.name} {said(path)}" for path in files).encode()).hexdigest()

    def items(self) -> list[Item]:
        """See `Source`; tiles without data among them."""
        stat = f"{self._of_files(stat_of)} {self._cut}"
        return [
            Item(key, stat, lambda: self._content, lambda key=key: self._seen(key))  # type: ignore[misc]
            for key in self.tiles
        ]

    def picture(self, key: str) -> Image.Image:
        """See `Source`."""
        view = self.scene.view(self.tiles[key], self.tiling.grid.window, self.tiling.side)
        return Image.fromarray(view.pixels)

    def _seen(self, key: str) -> Image.Image | None:
        view = self.scene.view(self.tiles[key], self.tiling.grid.window, self.tiling.side)
        return (
            Image.fromarray(view.pixels) if view.valid > 0 and view.valid >= self.wanted.min_valid else None
        )

    def write(self, path: Path, kind: str, query: str, hits: Sequence[Hit], model: str) -> None:
        """Write what was found as polygons, in one of the formats."""
        said = {
            "scene": self.scene.path.name,
            "query": query,
            "gsd": self.tiling.gsd,
            "time": self.scene.time,
            "model": model,
        }
        rows = [
            place_of(self.tiles[key]) | said | {"rank": rank, "similarity": round(score, 6)}
            for rank, (key, score) in enumerate(hits, 1)
        ]
        moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(self.scene.path.stat().st_mtime))
        write_tiles(path, kind, Tiles(FOUND, rows, self.scene.where, moment))


def run(args: argparse.Namespace) -> int:
    """Bring the index up to date, search it, show what was found; 0.

    Raises:
        UserError: there is nothing to search, or what was found cannot be written so.
    """
    kind = _kind(args)
    with ExitStack() as stack:
        cut = wanted(args)
        if args.target.is_dir():
            if cut != Wanted(crop=CROP):
                raise UserError(
                    f"{args.target}: its images are compared whole; --crop and the like are for a scene"
                )
            source: Source = FolderSource(args.target)
        elif args.target.is_file():
            scene = stack.enter_context(cut.open(args.target))
            if kind in SUFFIXES:
                check_format(kind, scene)
            source = SceneSource(scene, cut)
        else:
            raise UserError(f"{args.target}: no such folder or file")
        items = source.items()
        aligner = Aligner.of(args.checkpoint, args.device)
        index = open_index(source.index if args.index is None else args.index, aligner)
        update(index, items, aligner, args.batch_size, _progress)
        hits = find(index, aligner, args.text, args.top)
        if not hits:
            raise UserError(f"{args.target}: nothing to search; no image opens, or no tile has data")
        _show(args, kind, source, hits, aligner.hash)
    return 0


def _kind(args: argparse.Namespace) -> str:
    """How results are shown: `table`, `sheet` or a format."""
    if args.output is None:
        return "table"
    if args.output.suffix.lower() == ".png":
        return "sheet"
    for name, suffix in SUFFIXES.items():
        if args.output.suffix.lower() == suffix:
            if args.target.is_dir():
                raise UserError(f"{args.output}: images of a folder have no place on a map; take FILE.png")
            return name
    known = ", ".join([".png", *SUFFIXES.values()])
    raise UserError(f"{args.output}: its name ends with none of {known}")


def _show(args: argparse.Namespace, kind: str, source: Source, hits: Sequence[Hit], model: str) -> None:
    if kind == "table":
        for rank, (key, score) in enumerate(hits, 1):
            print(f"{rank}\t{score:.4f}\t{key}")
        return
    if kind == "sheet":
        cells = [
            (source.picture(key), f"{rank}. {score:.3f} {key}") for rank, (key, score) in enumerate(hits, 1)
        ]
        with replacing(args.output) as temporary:
            sheet(cells, columns=5).save(temporary, "PNG")
    elif isinstance(source, SceneSource):
        source.write(args.output, kind, args.text, hits, model)
    print(args.output)


class _Progress:
    said = 0.0


def _progress(done: int, total: int) -> None:
    """Say how many of the new images are in, where someone looks."""
    if sys.stderr.isatty() and (done == total or time.monotonic() - _Progress.said > _EVERY):
        _Progress.said = time.monotonic()
        print(f"\r{done}/{total} new images", end="\n" if done == total else "", file=sys.stderr, flush=True)
