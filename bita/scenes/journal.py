"""The journal beside an output that is being made: what is done already, so that a killed run goes on there.

The first line says what it is of: scene, model, settings. Each further line is a batch of rows, so that a batch is
whole or not there. Going on at a batch's end, the model meets the same batches again, and gives
the same rows to the last bit.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from bita.errors import UserError
from bita.files import naming
from bita.scenes.layers import Row


class Journal:
    """A journal, open and locked, to be used in a `with`.

    Args:
        path: of the journal; made if it is not there.
        head: what its rows depend on.
        overwrite: begin anew where it is of something else.

    Attributes:
        done: the last tile that it holds, -1 for none.
        rows: how many it holds.

    Raises:
        UserError: it is of something else, or another process writes it.
    """

    def __init__(self, path: Path, head: dict[str, Any], overwrite: bool = False) -> None:
        self.path, self.done, self.rows = path, -1, 0
        self._file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.seek(0)
            found = self._file.readline()
            first = json.dumps(head, ensure_ascii=False, sort_keys=True).encode() + b"\n"
            if found.endswith(b"\n") and found != first and not overwrite:
                raise UserError(
                    f"{path}: is of {_differing(found, first)}; give those again to go on, or say --overwrite to start "
                    "anew"
                )
            if found != first:
                self._file.truncate(0)
                self._write(first)
            self._find_end(len(first))
        except BlockingIOError:
            self._file.close()
            raise UserError(
                f"{path}: another process writes it; wait for it, or name another --output"
            ) from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, rows: Sequence[Row]) -> None:
        """Append a batch.

        Raises:
            OSError: it cannot be written, as on a full disk; what was written before stays.
        """
        line = json.dumps(list(rows), ensure_ascii=False).encode() + b"\n"
        self._write(line)
        self.done, self.rows = rows[-1]["tile"], self.rows + len(rows)

    def __iter__(self) -> Iterator[Row]:
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield from json.loads(line)

    def remove(self) -> None:
        """Delete it: what it was of is written."""
        self.path.unlink(missing_ok=True)

    def _write(self, line: bytes) -> None:
        """Append a line; what is written of one that does not fit is cut off when it is opened again."""
        with naming(self.path):
            while line:
                line = line[self._file.write(line) :]

    def _find_end(self, start: int) -> None:
        """Read over whole batches, and cut off what a kill left of another."""
        end = start
        with self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                try:
                    rows = json.loads(line) if line.endswith(b"\n") else []
                    self.done, self.rows = rows[-1]["tile"], self.rows + len(rows)
                except (ValueError, LookupError, TypeError):
                    break
                end += len(line)
        self._file.truncate(end)


def _differing(found: bytes, wanted: bytes) -> str:
    """Return what a journal's first line has otherwise, for a message; of files the first alone."""
    head = json.loads(wanted)
    try:
        other = dict(json.loads(found))
        were, are = other["scene"], head["scene"]
        were = were if isinstance(were, list) else [were]
        files = [file for file in were if file not in are]
        files += [f"without {file[0]}" for file in are if file not in were] or were
    except (ValueError, TypeError, LookupError):
        return "no scene"
    names = [name for name in (*other, *(set(head) - set(other))) if other.get(name) != head.get(name)]
    return ", ".join(f"{name} {files[0] if name == 'scene' else other.get(name)}" for name in names)
