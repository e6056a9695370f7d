"""What changed between two dates of a scene: tiles whose captions or images differ, by the same model.

`change_image` is 1 - the mean cosine between what the model's stage 1 sees of both images, query by query.

`change_caption` is the share of words that the two captions do not have in common, 0 to 1. `change` is their mean, or
the second alone where the model has no stage 1; `rank` 1 is the tile that changed most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from bita.scenes.captioning import Job, Progress, Seen, Wanted, Written, rounded, run
from bita.scenes.journal import Journal
from bita.scenes.layers import CHANGES, Row, place_of

if TYPE_CHECKING:
    from bita.inference.captioner import Captioner
    from bita.inference.captions import Caption


def caption_changes(
    captioner: Captioner,
    rasters: tuple[Path, ...],
    out: Path,
    kind: str,
    wanted: Wanted,
    progress: Progress,
    top: int | None = None,
) -> Written:
    """Caption the tiles of two dates and write how much each changed, both captions side by side.

    The tiles are those of the second raster; the first is resampled onto its pixels. Tiles without data at one of
    the dates are passed over.

    Args:
        captioner: a trained model.
        rasters: of the first date, and of the second.
        out: file to write; others as of `captioning.run`.
        kind: see `out`.
        wanted: see `out`.
        progress: see `out`.
        top: only so many tiles, those that changed most, and none that did not; None: all.

    Raises:
        UserError: a scene cannot be read, the two cannot be compared, or not be written in that format.
        OSError: a file cannot be written.
    """
    before, after = rasters
    with wanted.open(after) as scene, wanted.open(before, like=scene) as past:
        tiling = wanted.tiling(scene)
        shared = {"before": before.name, "after": after.name, "gsd": tiling.gsd, "model": captioner.hash}
        shared |= {"time_before": past.time, "time_after": scene.time}

        def items(first: int) -> Iterator[Seen]:
            for view in tiling.views(scene, first, wanted.min_valid):
                other = past.view(view.tile, tiling.grid.window, tiling.side)
                if other.valid > 0 and other.valid >= wanted.min_valid:
                    yield other, view

        def rows(seen: list[Seen], captions: list[list[Caption]]) -> list[Row]:
            return [row | shared for row in _rows(captioner, seen, captions)]

        job = Job(CHANGES, scene, (past, scene), items, rows, lambda journal: _ranked(journal, top))
        return run(captioner, job, out, kind, wanted, len(tiling.grid), progress)


def words_apart(one: str, other: str) -> float:
    """Return the share of the words of two captions that they do not have in common: 0 the same, 1 none."""
    words = Counter(one.lower().split()), Counter(other.lower().split())
    total = words[0].total() + words[1].total()
    return 1 - 2 * (words[0] & words[1]).total() / total if total else 0.0


def _rows(captioner: Captioner, seen: list[Seen], captions: list[list[Caption]]) -> Iterator[Row]:
    """Rows of a batch, but for what is the same in all."""
    apart: list[float | None] = [None] * len(seen)
    if captioner.stage1 is not None:
        past, now = (
            captioner.embed_images([Image.fromarray(views[date].pixels) for views in seen]) for date in (0, 1)
        )
        apart = [min(1.0, max(0.0, 1 - value)) for value in (past * now).sum(-1).mean(-1).tolist()]
    for (then, view), (old, new), image in zip(seen, captions, apart, strict=True):
        text = words_apart(old.caption, new.caption)
        yield place_of(view.tile) | {
            "caption_before": old.caption,
            "caption_after": new.caption,
            "change": rounded(text if image is None else (text + image) / 2),
            "change_image": rounded(image),
            "change_caption": rounded(text),
            "confidence_before": rounded(old.confidence),
            "confidence_after": rounded(new.confidence),
            "valid": min(then.valid, view.valid),
        }


def _ranked(journal: Journal, top: int | None) -> Iterator[Row]:
    """Rows with their rank, in the order of the tiles; the first `top` of them, which changed at all."""
    order = sorted((-row["change"], row["tile"]) for row in journal if top is None or row["change"] > 0)[:top]
    ranks = {tile: rank for rank, (_, tile) in enumerate(order, start=1)}
    return (row | {"rank": ranks[row["tile"]]} for row in journal if row["tile"] in ranks)
