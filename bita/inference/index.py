"""Vectors of many images in a folder on the disk, and the exact search in them.

index.json        format, hash of the model, Q, E, and the generation N that the other two files have in their names
vectors.N.f16     rows × Q × E numbers in half precision, memory-mapped
rows.N.jsonl      a line for each image: key, stat, content, row; the last of a key counts; row null: nothing to compare

A row counts once its line is on the disk, so that a run that was killed loses what it had not said yet and no more. The
similarity of an image and a text is that of stage 1, the highest of v·t over the image's Q vectors v; it is exact for
the vectors as they are kept. Shapes: N images, Q query tokens, E embedding width, M texts.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bita.errors import UserError
from bita.files import TEMPORARY, exclusive, naming, replacing, sync, write_json
from bita.processors.image import one_thread

FORMAT = 1
HEADER, LOCK = "index.json", "lock"
BLOCK = 256
"""Images whose vectors are compared at a time; they stay in the processor's cache."""
Vectors = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Entry:
    """An image of an index.

    Attributes:
        key: what it is called; one image has one.
        stat: changes whenever its file may have.
        content: changes whenever its pixels do.
        row: of its vectors; None where it has none, as an empty tile or a broken file.
    """

    key: str
    stat: str
    content: str
    row: int | None


class VectorIndex:
    """An index, opened for one model; created where there is none. `add` and `keep` are called inside `writing`.

    Args:
        folder: of the index.
        model: hash of the model whose vectors are in it.
        queries: Q.
        width: E.

    Attributes:
        entries: key → what is known of that image.

    Raises:
        UserError: it holds another model's vectors, is none, or cannot be written.
    """

    def __init__(self, folder: Path, model: str, queries: int, width: int) -> None:
        self.folder, self.shape = folder, (queries, width)
        self._header: dict[str, Any] = {"format": FORMAT, "model": model, "queries": queries, "width": width}
        self.count, self.entries = 0, dict[str, Entry]()
        self._mapped: tuple[int, Vectors] = (0, np.zeros((0, queries, width), np.float16))
        with self.writing():
            pass

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the index for this process, with what others may have written until now."""
        with contextlib.ExitStack() as held:
            try:
                self._said()  # before anything is put into a folder of something else
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(exclusive(self.folder / LOCK))
                self._read()
            except OSError as error:
                raise UserError(
                    f"{self.folder}: cannot be written ({error.strerror}); name another --index"
                ) from None
            yield
            self.vectors()  # held open: another process may write the files anew, and remove these

    def add(self, entries: Sequence[Entry], vectors: Tensor | None = None) -> None:
        """Write images down, on the disk when this returns; raises OSError, with the file's name, where it is full.

        Args:
            entries: `row` of each is its place in `vectors`, or None.
            vectors: (N, Q, E) of those that have some.
        """
        if vectors is not None:
            kept = vectors.to(torch.float16).cpu().numpy()
            if kept.shape[1:] != self.shape or not np.isfinite(kept).all():
                raise UserError(
                    f"{self.folder}: the model gives vectors {kept.shape[1:]} that cannot be kept here"
                )
            with naming(self._vectors), self._vectors.open("r+b") as file:
                file.seek(self.count * self._bytes)
                file.write(kept.tobytes())
                _to_disk(file)
        placed = [
            e if e.row is None or vectors is None else Entry(e.key, e.stat, e.content, self.count + e.row)
            for e in entries
        ]
        with naming(self._rows), self._rows.open("ab") as lines:
            lines.write(_lines_of(placed))
            _to_disk(lines)
        self.count += 0 if vectors is None else len(vectors)
        self.entries |= {entry.key: entry for entry in placed}

    def keep(self, keys: set[str]) -> None:
        """Forget all images but these; where more rows are forgotten than live, the files are written anew without."""
        self.entries = {key: entry for key, entry in self.entries.items() if key in keys}
        live = [entry for entry in self.entries.values() if entry.row is not None]
        if self.count <= 2 * len(live):
            return
        old, vectors = (self._vectors, self._rows), self.vectors()
        empty = [entry for entry in self.entries.values() if entry.row is None]
        self._generation += 1
        for path in (self._vectors, self._rows):
            path.write_bytes(b"")
        self.count, self.entries = 0, {}
        for start in range(0, len(live), BLOCK):
            part = live[start : start + BLOCK]
            moved = [Entry(e.key, e.stat, e.content, place) for place, e in enumerate(part)]
            self.add(moved, torch.from_numpy(vectors[[e.row for e in part if e.row is not None]]))
        self.add(empty)
        self._write_header()
        for path in old:
            path.unlink()

    def vectors(self) -> Vectors:
        """All rows, (rows, Q, E), as they lie on the disk; changes made to it stay in memory."""
        generation, found = self._mapped
        if (generation, len(found)) != (self._generation, self.count):
            shape = (self.count, *self.shape)
            found = (
                np.memmap(self._vectors, np.float16, "c", shape=shape)
                if self.count
                else np.zeros(shape, np.float16)
            )
            self._mapped = self._generation, found
        return found

    def search(self, texts: Tensor, top: int) -> list[list[tuple[str, float]]]:
        """For each of M texts (M, E) the keys of the `top` most similar images, and the similarity; best first."""
        keys = {entry.row: entry.key for entry in self.entries.values() if entry.row is not None}
        live = np.zeros(self.count, bool)
        live[list(keys)] = True
        return [
            [(keys[row], score) for row, score in found] for found in search(self.vectors(), texts, top, live)
        ]

    @property
    def _vectors(self) -> Path:
        return self.folder / f"vectors.{self._generation}.f16"

    @property
    def _rows(self) -> Path:
        return self.folder / f"rows.{self._generation}.jsonl"

    @property
    def _bytes(self) -> int:
        """Of a row."""
        return 2 * self.shape[0] * self.shape[1]

    def _read(self) -> None:
        """Take in what is on the disk."""
        said = self._said()
        self._generation = int(said.get("generation", 0))
        if not said:
            self._write_header()
        for path in (self._vectors, self._rows):
            path.touch()
        self.count = self._vectors.stat().st_size // self._bytes
        said_to_be = list(self._lines())
        known = [entry for entry in said_to_be if entry.row is None or entry.row < self.count]
        if len(known) < len(said_to_be):
            # Vectors were lost; those that come in their place are of other images.
            with replacing(self._rows) as temporary:
                temporary.write_bytes(_lines_of(known))
                sync(temporary)
        self.entries = {entry.key: entry for entry in known}

    def _said(self) -> dict[str, Any]:
        """The header of an index that is there; empty where there is none."""
        path = self.folder / HEADER
        # Listed first: a header that another process writes meanwhile is then seen with its files.
        names = [file.name for file in self.folder.iterdir()] if self.folder.is_dir() else []
        if not path.is_file():
            if any(name.startswith("vectors.") and name.endswith(".f16") for name in names):
                raise UserError(
                    f"{path}: is gone, and the index cannot be read without it; remove the folder, then it is made anew"
                )
            # Whoever begins one just now has its lock there, and the header under another name.
            if any(name != LOCK and not name.startswith(TEMPORARY) for name in names):
                raise UserError(f"{self.folder}: is a folder of something else, not a search index")
            return {}
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            other = next((name for name, value in self._header.items() if said[name] != value), None)
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}: is no header of a search index; remove the folder") from None
        if other is not None:
            raise UserError(
                f"{self.folder}: its {other} is {said[other]}, not {self._header[other]}: it was made by another "
                "model; name another --index, or remove it"
            )
        return dict(said)

    def _write_header(self) -> None:
        write_json(self.folder / HEADER, self._header | {"generation": self._generation})

    def _lines(self) -> Iterator[Entry]:
        """Entries as they were written; a last line that was not finished is cut off."""
        content = self._rows.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self._rows, whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                yield Entry(**json.loads(line))
            except (ValueError, TypeError):
                raise UserError(
                    f"{self._rows}: line {number}: is no entry of an index; remove the folder"
                ) from None


def search(
    vectors: Vectors, texts: Tensor, top: int, live: npt.NDArray[np.bool_] | None = None
) -> list[list[tuple[int, float]]]:
    """The rows that fit each text best, exactly: as all similarities in double precision would rank them.

    All rows are compared in single precision, whose error has a bound; those that could be among the best within it
    are compared again in double precision. Equal ones stand in the order of their rows.

    Args:
        vectors: (N, Q, E), of about unit length.
        texts: (M, E).
        top: rows wanted.
        live: (N,) which rows count; None: all.

    Returns:
        For each text (row, similarity), best first; fewer than `top` where there are fewer.
    """
    wanted, count = texts.detach().float().cpu(), len(vectors)
    rough = torch.empty(count, len(wanted))
    with one_thread():
        for start in range(0, count, BLOCK):
            part = torch.from_numpy(vectors[start : start + BLOCK]).float()
            products = (part.flatten(0, 1) @ wanted.T).unflatten(0, part.shape[:2])
            rough[start : start + BLOCK] = products.amax(dim=1)
    if live is not None:
        rough[~torch.from_numpy(live)] = -torch.inf
    top = min(top, count if live is None else int(live.sum()))
    return [
        _ranked(vectors, text, near, top) if top else []
        for text, near in zip(wanted, rough.T.contiguous(), strict=True)
    ]


def _ranked(vectors: Vectors, text: Tensor, near: Tensor, top: int) -> list[tuple[int, float]]:
    """The best of the rows whose similarity (N,) is nearly known."""
    error = (
        vectors.shape[2] * 2.0**-23 * 1.01 * float(text.norm())
    )  # of a sum of E products, vectors of length 1
    rows = (near >= near.topk(top).values[-1] - 2 * error).nonzero()[:, 0].numpy()
    rows = rows[np.isfinite(near[rows].numpy())]
    exact = text.double().numpy()
    scores = np.concatenate(
        [
            (vectors[rows[start : start + BLOCK]].astype(np.float64) @ exact).max(axis=1)
            for start in range(0, len(rows), BLOCK)
        ]
    )
    order = np.lexsort((rows, -scores))[:top]
    return [(int(rows[k]), float(scores[k])) for k in order]


def _lines_of(entries: Iterable[Entry]) -> bytes:
    return b"".join(json.dumps(asdict(entry)).encode() + b"\n" for entry in entries)


def _to_disk(file: Any) -> None:
    file.flush()
    sync(Path(file.name))
