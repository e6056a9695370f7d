"""A scene, or two dates of one, to a file of captioned tiles."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bita.scenes.journal import Journal
from bita.scenes.layers import CAPTIONS, Layer, Row, place_of
from bita.scenes.rasters import Scene, View
from bita.scenes.stac import check_item, write_item
from bita.scenes.tiling import Ahead, Tiling, batches
from bita.scenes.vectors import Tiles, check_format, write_tiles
from bita.scenes.windows import Edge

if TYPE_CHECKING:
    from bita.inference.captioner import Captioner
    from bita.inference.captions import Caption

Progress = Callable[[int, int], None]
"""Called with the tiles that are done or passed over, and with all."""
Seen = tuple[View, ...]
"""What the model sees of one tile: an image of each date."""
_DIGITS = 6
"""Of numbers in a file."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How scenes are captioned.

    Attributes:
        crop: side of a tile's image in pixels.
        stride: from one tile to the next in such pixels; None: `crop`.
        gsd: metres that a pixel covers; None: as in the scene.
        edge: what happens at the scene's edges, see `bita.scenes.windows`.
        bands: three numbers from 1 that become red, green and blue; None: the first three.
        crs: reference system that counts instead of the scene's.
        min_valid: share of a tile's pixels that must have data, else it is passed over.
        batch_size: tiles that the model sees at a time.
        search: what `Captioner.stream` takes besides.
        settings: what else captions depend on; a journal of others does not fit.
        stac: whether a STAC Item is written beside the file.
        overwrite: whether a journal of something else is begun anew instead of refused.
    """

    crop: int
    stride: int | None = None
    gsd: float | None = None
    edge: Edge = "shift"
    bands: tuple[int, ...] | None = None
    crs: str | None = None
    min_valid: float = 0.0
    batch_size: int = 16
    search: dict[str, Any] = field(default_factory=dict)
    settings: str = ""
    stac: bool = False
    overwrite: bool = False

    def open(self, path: Path, like: Scene | None = None) -> Scene:
        """Open a raster; `like` as for `Scene`.

        Raises:
            UserError: see `Scene`.
        """
        from bita.scenes.georeference import crs_of

        return Scene(path, self.bands, crs_of(self.crs) if self.crs else None, like)

    def tiling(self, scene: Scene) -> Tiling:
        """Cut a scene into tiles."""
        return Tiling.of(scene, self.crop, self.stride or self.crop, self.gsd, self.edge)


@dataclass(frozen=True)
class Written:
    """What became of a scene.

    Attributes:
        path: the file.
        tiles: how many it holds.
        captioned: how many were captioned.
        total: how many the scene has, those without data included.
        resumed: how many of the captioned ones a run before this one had done.
    """

    path: Path
    tiles: int
    captioned: int
    total: int
    resumed: int


def journal_of(path: Path) -> Path:
    """Return where the journal of an output lies while it is made."""
    return path.with_name(f"{path.name}.journal")


@dataclass(frozen=True)
class Job:
    """What `run` writes.

    Attributes:
        layer: columns of the file.
        scene: whose tiles they are.
        rasters: all that are read, open; a journal of others does not fit.
        items: number of a tile → what the model sees of that tile and of each after it, one image or several.
        rows: of a batch what was seen, and the captions of each → a row for each.
        order: rows in the order of the tiles → rows of the file.
    """

    layer: Layer
    scene: Scene
    rasters: tuple[Scene, ...]
    items: Callable[[int], Iterator[Seen]]
    rows: Callable[[list[Seen], list[list[Caption]]], list[Row]]
    order: Callable[[Journal], Iterable[Row]] = iter


def run(
    captioner: Captioner, job: Job, out: Path, kind: str, wanted: Wanted, total: int, progress: Progress
) -> Written:
    """Caption tiles and write them as polygons; goes on where a run that was killed stopped.

    Args:
        captioner: a trained model.
        job: of which tiles, and which rows they make.
        out: file to write.
        kind: one of `bita.scenes.layers.SUFFIXES`.
        wanted: see there.
        total: tiles of the scene.
        progress: told of each batch.
    """
    check_format(kind, job.scene)
    if wanted.stac:
        check_item(job.scene)
    with Journal(journal_of(out), _head(captioner, wanted, job.rasters), wanted.overwrite) as journal:
        resumed = journal.rows
        work = _captioned(captioner, job.items(journal.done + 1), len(job.rasters), wanted)
        with closing(work) as parts:  # or a thread would read on in a raster that is closed
            for seen, captions in parts:
                journal.add(job.rows(seen, captions))
                progress(journal.done + 1, total)
        progress(total, total)
        paths = tuple(raster.path for raster in job.rasters)
        moment = _instant(paths[-1].stat().st_mtime)
        tiles = write_tiles(out, kind, Tiles(job.layer, job.order(journal), job.scene.where, moment))
        if wanted.stac:
            write_item(job.scene, out, paths, captioner.hash)
        journal.remove()
    return Written(out, tiles, journal.rows, total, resumed)


def caption_scene(
    captioner: Captioner, path: Path, out: Path, kind: str, wanted: Wanted, progress: Progress
) -> Written:
    """Caption the tiles of a raster; arguments as of `run`.

    Raises:
        UserError: the scene cannot be read, or not be written in that format.
        OSError: a file cannot be written.
    """
    with wanted.open(path) as scene:
        tiling = wanted.tiling(scene)
        shared = {"scene": path.name, "gsd": tiling.gsd, "time": scene.time, "model": captioner.hash}

        def items(first: int) -> Iterator[Seen]:
            return ((view,) for view in tiling.views(scene, first, wanted.min_valid))

        def rows(seen: list[Seen], captions: list[list[Caption]]) -> list[Row]:
            return [
                place_of(view.tile) | _said(record) | shared | {"valid": view.valid}
                for (view,), (record,) in zip(seen, captions, strict=True)
            ]

        job = Job(CAPTIONS, scene, (scene,), items, rows)
        return run(captioner, job, out, kind, wanted, len(tiling.grid), progress)


def rounded(number: float | None) -> float | None:
    """Return a number as a file has it."""
    return None if number is None else round(float(number), _DIGITS)


def _said(record: Caption) -> Row:
    return {
        "caption": record.caption,
        "candidates": record.candidates,
        "log_probability": rounded(record.log_probability),
        "score": rounded(record.score),
        "confidence": rounded(record.confidence),
    }


def _captioned(
    captioner: Captioner, items: Iterator[Seen], each: int, wanted: Wanted
) -> Generator[tuple[list[Seen], list[list[Caption]]]]:
    """Caption items of `each` images as they are read; batch by batch the items and the captions of each.

    They are read beside the model, or where that has all cores of a CPU, between its batches.
    """
    from bita.inference.views import works_beside

    waiting: deque[Seen] = deque()
    beside = works_beside(captioner.model.device)
    with Ahead(items, 2 * wanted.batch_size) if beside else nullcontext(items) as read:

        def images() -> Iterator[View]:
            for views in read:
                waiting.append(views)
                yield from views

        records = captioner.stream(images(), batch_size=each * wanted.batch_size, **wanted.search)
        for captions in batches(batches(records, each), wanted.batch_size):
            yield [waiting.popleft() for _ in captions], captions


def _head(captioner: Captioner, wanted: Wanted, rasters: tuple[Scene, ...]) -> dict[str, Any]:
    """Return what the rows of a journal depend on."""
    known = [(path.name, path.stat()) for raster in rasters for path in raster.files]
    files = [[name, stat.st_size, _instant(stat.st_mtime)] for name, stat in known]
    settings = {name: value for name, value in asdict(wanted).items() if name != "overwrite"}
    return {"scene": files, "model": captioner.hash} | settings


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
