"""Files of captions that are written as they come, one line a record, and gone on with after any end.

`.jsonl`   an object a line, with the fields of `COLUMNS`
`.csv`     these columns; candidates as a JSON list
`.txt`     name, tab, caption (and further candidates, tabs between them)
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from bita.errors import UserError
from bita.files import replacing
from bita.inference.captions import Caption

COLUMNS = (
    *("image", "sha256", "caption", "candidates", "log_probability", "tokens", "score", "confidence"),
    *("model", "settings", "error"),
)
"""Fields of a record: a caption, or of an image that did not open why not."""
Record = Mapping[str, Any]
_DIGITS = 6
_CELL = "\n\r\0\t"
"""What ends a line or a column of text."""


class _Format(NamedTuple):
    """How one kind of file has a record in a line.

    Attributes:
        header: its first line.
        write: record → line.
        read: line → record, at least its `image` and `error`.
    """

    header: str
    write: Callable[[Record], str]
    read: Callable[[str], Record]


def _csv_line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def _write_csv(record: Record) -> str:
    cells = {name: "" if value is None else str(value) for name, value in record.items()}
    if record["candidates"] is not None:
        cells["candidates"] = json.dumps(record["candidates"], ensure_ascii=False)
    return _csv_line([flat(cells[name]) for name in COLUMNS])


def _read_csv(line: str) -> Record:
    (cells,) = csv.reader([line], strict=True)
    return dict(zip(COLUMNS, cells, strict=True))


def _read_json(line: str) -> Record:
    record = json.loads(line)
    if not isinstance(record, dict) or not set(COLUMNS) <= set(record):
        raise ValueError(line)
    return record


def text_line(name: str, said: Sequence[str]) -> str:
    """Return a line of text: a name as of `name_of`, and an image's candidates or its error, tabs between them."""
    return "\t".join([name, *(flat(text, _CELL) for text in said)])


def _write_text(record: Record) -> str:
    return text_line(
        record["image"], [f"error: {record['error']}"] if record["error"] else record["candidates"]
    )


def _read_text(line: str) -> Record:
    name, said = line.split("\t", 1)
    return {"image": name, "error": said if said.startswith("error: ") else None}


FORMATS = {
    ".csv": _Format(_csv_line(list(COLUMNS)), _write_csv, _read_csv),
    ".jsonl": _Format("", lambda record: json.dumps(dict(record), ensure_ascii=False), _read_json),
    ".txt": _Format("", _write_text, _read_text),
}


def flat(text: str, ends: str = "\n\r\0") -> str:
    """Return a text in which the characters `ends`, those that end a line, stand as their escapes."""
    return "".join(ascii(letter)[1:-1] if letter in ends else letter for letter in text)


def name_of(path: Path) -> str:
    """Return a file's name as records have it: in one line, bytes of it that are no UTF-8 escaped."""
    return flat(str(path).encode("utf-8", "backslashreplace").decode(), _CELL)


def record_of(path: Path, content: str, found: Caption | UserError, model: str, settings: str) -> Record:
    """Return the record of an image.

    Args:
        path: of the image.
        content: the file's sha256.
        found: its caption, or why it does not open.
        model: the model's hash.
        settings: those that differ from the run's.
    """
    record: dict[str, Any] = dict.fromkeys(COLUMNS)
    record |= {"image": name_of(path), "sha256": content, "model": model, "settings": settings}
    if isinstance(found, UserError):
        return record | {"error": str(found)}
    return record | {
        "caption": found.caption,
        "candidates": found.candidates,
        "tokens": found.tokens,
        **{name: _rounded(getattr(found, name)) for name in ("log_probability", "score", "confidence")},
    }


def _rounded(value: float | None) -> float | None:
    finite = value is not None and abs(value) < float("inf")
    return round(value, _DIGITS) if finite and value is not None else None


def format_of(path: Path) -> _Format:
    """Return the kind of file that a name asks for; raises UserError where it is none of them."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: its name must end in {', '.join(FORMATS)}, which decides what is written")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    return FORMATS[path.suffix.lower()]


class RecordFile:
    """A file of records that is open for more of them; no other process may write it meanwhile.

    What an end in the middle of a line has left is cut off.

    Args:
        path: the file; new, or one of the same model and settings.
        model: the model's hash.
        settings: those that differ from the run's.
        overwrite: begin anew whatever is there.

    Attributes:
        done: name of an image → its record.

    Raises:
        UserError: it holds something else, or another process writes it.
    """

    def __init__(self, path: Path, model: str, settings: str, overwrite: bool = False) -> None:
        self.path, self.model, self.settings = path, model, settings
        self.format = format_of(path)
        self._file = self._open(overwrite)
        self.done: dict[str, Record] = {}
        try:
            if path.is_file():
                self._go_on()
            if self.format.header and (not path.is_file() or not path.stat().st_size):
                self._write(self.format.header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, record: Record) -> None:
        """Write a record; it is the operating system's when this returns.

        Raises:
            UserError: the disk is full, or the file cannot be written any more.
        """
        self._write(self.format.write(record))

    def drop(self, names: set[str]) -> None:
        """Take the records of these images out again."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        head = lines[: bool(self.format.header)]
        with replacing(self.path) as temporary:
            kept = [line for line in lines[len(head) :] if self._read(line, 0)["image"] not in names]
            temporary.write_bytes(b"".join([*head, *kept]))
        for name in names:
            del self.done[name]
        self._file.close()
        self._file = self._open(overwrite=False)

    def _open(self, overwrite: bool) -> io.FileIO:
        try:
            file = io.FileIO(self.path, "ab")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(f"{self.path}: another process writes this file; wait, or end it") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None
        if overwrite and self.path.is_file():
            file.truncate(0)
        return file

    def _go_on(self) -> None:
        """Read what is there; cut off what has no end."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        lines = whole.splitlines(keepends=True)
        if (
            self.format.header
            and lines
            and lines[0].decode("utf-8", "replace").rstrip("\r\n") != self.format.header
        ):
            raise UserError(
                f"{self.path}: has other columns than captions have; choose another --output, or --overwrite"
            )
        for number, line in enumerate(lines[bool(self.format.header) :], 1 + bool(self.format.header)):
            record = self._read(line, number)
            for name, own in (("model", self.model), ("settings", self.settings)):
                if record.get(name, own) != own:
                    raise UserError(
                        f"{self.path}: line {number}: was written with {name} {record[name] or 'as in the run'!r}, not "
                        f"{own or 'as in the run'!r}; choose another --output, or --overwrite"
                    )
            self.done[record["image"]] = record

    def _read(self, line: bytes, number: int) -> Record:
        try:
            return self.format.read(line.decode().rstrip("\r\n"))
        except (ValueError, csv.Error):
            raise UserError(
                f"{self.path}: line {number}: is no record of a caption; choose another --output, or --overwrite"
            ) from None

    def _write(self, line: str) -> None:
        rest = f"{line}\n".encode()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); mend that and start the command again without "
                "--overwrite: it goes on from there"
            ) from None
