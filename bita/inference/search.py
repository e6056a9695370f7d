"""Images found by words: what is embedded once is kept in an index, and only what is new or changed is embedded again.

A changed file is known by its size and time, and then by its content; what is broken is said once, and passed over.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bita.errors import UserError, one_line
from bita.inference.aligner import Aligner
from bita.inference.index import Entry, VectorIndex
from bita.inference.sources import content_hash
from bita.inference.views import ImageLike, seen_ahead

LOG = logging.getLogger(__name__)
INDEX = ".bita-index"
"""Name of a folder's own index, which lies in it; of a file's, the end of the name."""


@dataclass(frozen=True)
class Item:
    """An image that can be found.

    Attributes:
        key: what it is called in the index.
        stat: changes whenever its file may have.
        content: called where `stat` is new; changes whenever its pixels do.
        image: called where the content is new; None: there is nothing to see.
    """

    key: str
    stat: str
    content: Callable[[], str]
    image: Callable[[], ImageLike | None]


def stat_of(path: Path) -> str:
    """Return what changes when a file is written or replaced: its size, and the nanoseconds of its last changes.

    The second of these, of the file's status, is no program's to choose: copies that keep their source's time differ.
    """
    known = path.stat()
    return f"{known.st_size} {known.st_mtime_ns} {known.st_ctime_ns}"


def file_items(files: Iterable[Path], folder: Path) -> Iterator[Item]:
    """Each of the image files below a folder as an item, called by its path from there; what is gone is passed over."""
    for path in files:
        try:
            stat = stat_of(path)
        except OSError as error:
            LOG.warning("passed over: %s", one_line(error))
            continue
        yield Item(
            path.relative_to(folder).as_posix(),
            stat,
            lambda path=path: content_hash(path),  # type: ignore[misc]
            lambda path=path: path,  # type: ignore[misc]
        )


def open_index(folder: Path, aligner: Aligner) -> VectorIndex:
    """Open a model's index, or create it; see `VectorIndex`."""
    cfg = aligner.model.cfg
    return VectorIndex(folder, aligner.hash, cfg.num_query_token, cfg.embed_dim)


def update(
    index: VectorIndex,
    items: Sequence[Item],
    aligner: Aligner,
    batch_size: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Bring an index to hold exactly these images; goes on where a run that was killed stopped.

    Args:
        index: of the model.
        items: all that shall be found.
        aligner: the model.
        batch_size: images embedded, and written down, at a time.
        progress: called with how many of the new ones are done, and how many there are.
    """
    with index.writing():
        new = [item for item in items if not _is_known(index, item)]
        waiting: deque[tuple[Item, str]] = deque()

        def images() -> Iterator[ImageLike]:
            for item in new:
                content, known = item.content(), index.entries.get(item.key)
                if known is not None and known.content == content:  # touched, not changed
                    index.add([Entry(item.key, item.stat, content, known.row)])
                    continue
                image = item.image()
                if image is None:
                    index.add([Entry(item.key, item.stat, content, None)])
                    continue
                waiting.append((item, content))
                yield image

        batch: list[tuple[Item, str, torch.Tensor]] = []
        done = 0
        for seen in seen_ahead(images(), [aligner.view], 2 * batch_size, aligner.model.device):
            item, content = waiting.popleft()
            done += 1
            if isinstance(seen, UserError):
                LOG.warning("passed over: %s", seen)
                index.add([Entry(item.key, item.stat, content, None)])
                continue
            batch.append((item, content, seen[0]))
            if len(batch) == batch_size:
                _embed(index, batch, aligner)
                batch = []
                progress(done, len(new))
        if batch:
            _embed(index, batch, aligner)
        if new:
            progress(len(new), len(new))
        index.keep({item.key for item in items})


def find(index: VectorIndex, aligner: Aligner, text: str, top: int) -> list[tuple[str, float]]:
    """The keys of the images that fit a text best, and the cosine of the query that does; best first."""
    return index.search(aligner.embed_texts([text]), top)[0]


def _is_known(index: VectorIndex, item: Item) -> bool:
    known = index.entries.get(item.key)
    return known is not None and known.stat == item.stat


def _embed(index: VectorIndex, batch: Sequence[tuple[Item, str, torch.Tensor]], aligner: Aligner) -> None:
    pixels = aligner.view.batch([seen for _, _, seen in batch], aligner.model.device)
    entries = [Entry(item.key, item.stat, content, row) for row, (item, content, _) in enumerate(batch)]
    index.add(entries, aligner.embed_pixels(pixels))
