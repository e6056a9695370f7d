"""Files of captions, read by one rule for every reader: each record exactly as it stands, or refused in one line.

A reader asks a `Record` for its fields. What is not as it should be (bytes that are no text, rows of unequal length, a
key twice, a number where text belongs) is a `UserError` that names file and record; nothing is cut, guessed or dropped.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from bita.errors import UserError, no_file
from bita.magic import other_kind, stand_in

Id = int | str
"""Of an image, as its file has it."""
K = TypeVar("K", bound=Id)
ID_LIMIT = 2**63
"""Ids that are numbers are below this, and above its negative."""
DELIMITERS = ",;\t"
SHOWN, WIDE = 8, 40
"""Names of fields in a message, and characters of one."""
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it starts with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_KINDS = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def has_words(caption: str) -> bool:
    """Return whether a caption says anything: RSICD, as published, has three that are only " ."."""
    return any(letter.isalnum() for letter in caption)


def kind(value: object) -> str:
    """Return what a value of JSON is, in words."""
    return _KINDS.get(type(value), "null")


def half_pair(text: str) -> str | None:
    """The half of a surrogate pair in a text, which no file and no tokenizer can hold, such as `\\ud83d`; or None."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):04x}"
    return None


def decode(content: bytes, where: str) -> str:
    """Return the text of a file: UTF-8, or UTF-16 or UTF-32 with a byte-order mark, which is taken off.

    Raises:
        UserError: it is another encoding, no text at all, or stands in the place of a file that was not fetched;
            `where` and the line are named.
    """
    instead = stand_in(content)
    if instead is not None:
        raise UserError(f"{where}: is {instead}")
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        other = other_kind(content)
        if other is not None:
            raise UserError(f"{where}: is {other}") from None
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where}: line {line}: not {encoding.upper()} text (byte 0x{content[error.start]:02x}); save it as UTF-8"
        ) from None
    if "\0" in text:
        if not text.strip("\0"):
            raise UserError(f"{where}: is {other_kind(content)}")
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(
            f"{where}: line {line}: holds a NUL character (UTF-16 without a byte-order mark?); save it as UTF-8"
        )
    return text.lstrip("\ufeff")


def read_text(path: Path) -> str:
    """Return the text of a file; raises UserError where it is missing, is a folder, or is not text."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: {no_file(path)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return decode(content, str(path))


def lines(text: str) -> list[str]:
    """Return the lines of a text, ended by LF, CR LF or CR; other separators are part of a caption."""
    return re.split(r"\r\n|\r|\n", text)


class _ManyValues(UserError):
    """A JSON text that goes on after its value, as one with an object a line does."""


def parse_json(text: str, where: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        UserError: it is not JSON, has a key twice in one object, or is nested or has numbers beyond all measure.
    """
    try:
        if not text.strip():
            raise UserError("is empty")
        return json.loads(text, object_pairs_hook=_object)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except json.JSONDecodeError as error:
        fault = _ManyValues if error.msg == "Extra data" else UserError
        place = f"line {error.lineno}" if "\n" in error.doc.strip() else f"character {error.colno}"
        raise fault(f"{where}: not JSON ({place}: {error.msg})") from None
    except RecursionError:
        raise UserError(f"{where}: not read: lists or objects are nested too deeply") from None
    except ValueError:  # Python's limit for the digits of an integer
        raise UserError(f"{where}: not read: holds a number of thousands of digits") from None


def load_json(path: Path) -> Any:
    """Return the value of a JSON file; what is wrong with it is said in one line."""
    return parse_json(read_text(path), str(path))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        start = ascii(pairs[0][1])[:40]
        raise UserError(f"key {twice!r} is twice in one object, which starts with {keys[0]!r}: {start}")
    return found


@dataclass(frozen=True, slots=True)
class Record:
    """An object of a file, and its place there.

    Attributes:
        file: for messages.
        place: in the file, such as `images[3]` or `line 4`; "" for the whole.
        fields: name → value.
    """

    file: str
    place: str
    fields: dict[str, Any]

    @classmethod
    def of(cls, value: object, file: str, place: str) -> Record:
        """Return the record that `value` is; raises UserError where it is no object."""
        if not isinstance(value, dict):
            raise cls(file, place, {}).fault(f"wanted an object, found {kind(value)}")
        return cls(file, place, value)

    def fault(self, problem: str) -> UserError:
        """Return the error that says what is wrong with this record."""
        return UserError(": ".join(filter(None, (self.file, self.place, problem))))

    def about(self, name: str) -> Record:
        """Return this record, called by its image in messages."""
        return replace(self, place=f"{self.place} ({name})".strip())

    def __contains__(self, key: str) -> bool:
        return key in self.fields

    def get(self, key: str) -> Any:
        """Return the value of a field, which must be there."""
        if key not in self.fields:
            raise self.fault(f"field {key!r} is missing{self._others()}")
        return self.fields[key]

    def _others(self) -> str:
        """For the end of a message: which fields there are."""
        names = [ascii(name[:WIDE]) for name in self.fields]
        return f"; there are {', '.join(names[:SHOWN])}{', …' * (len(names) > SHOWN)}" if names else ""

    def text(self, key: str) -> str:
        """Return a field that must be text, and could name a file."""
        text = self._text(self.get(key), f"field {key!r}")
        if "\0" in text:
            raise self.fault(f"field {key!r} holds a NUL character; take it out")
        return text

    def label(self, key: str) -> str:
        """Return a field that names a class: text, or a whole number, as text."""
        value = self.get(key)
        return str(value) if type(value) is int else self.text(key)

    def captions(self, *keys: str) -> list[str]:
        """Return the captions in that one of the fields which is there: a text, or a list of texts, empty ones too."""
        there = [key for key in keys if key in self.fields]
        if len(there) > 1:
            raise self.fault(f"has both {there[0]!r} and {there[1]!r}; keep one")
        key = there[0] if there else keys[0]
        value = self.get(key)
        if not isinstance(value, list):
            return [self._text(value, f"field {key!r}")]
        return [self._text(text, f"field {key!r}, caption {k}") for k, text in enumerate(value, 1)]

    def image_id(self, key: str = "image_id") -> Id:
        """Return an image's id: a whole number, or text that is not empty."""
        value = self.get(key)
        if isinstance(value, str) and value:
            return self._text(value, f"field {key!r}")
        if type(value) is int and abs(value) < ID_LIMIT:
            return value
        shown = "empty text" if value == "" else repr(value) if isinstance(value, float) else kind(value)
        shown = "a number of more than 64 bits" if type(value) is int else shown
        raise self.fault(f"field {key!r} must be an id, that is a whole number or text, not {shown}")

    def objects(self, key: str) -> list[Record]:
        """Return the objects of a field that must be a list of them."""
        value = self.get(key)
        if not isinstance(value, list):
            raise self.fault(f"field {key!r} must be a list, not {kind(value)}")
        start = f"{self.place}.{key}" if self.place else key
        return [Record.of(entry, self.file, f"{start}[{k}]") for k, entry in enumerate(value)]

    def _text(self, value: object, what: str) -> str:
        if not isinstance(value, str):
            raise self.fault(f"{what} must be text, not {kind(value)}")
        half = half_pair(value)
        if half is not None:
            raise self.fault(
                f"{what} holds half of a surrogate pair ({half}); write the whole character, or take it out"
            )
        return value


def read_object(path: Path) -> Record:
    """Return a JSON file that is one object, such as COCO's."""
    return Record.of(load_json(path), str(path), "")


def read_records(path: Path) -> list[Record]:
    """Return the objects of a JSON list, of a file with one object a line, or of a file that is one."""
    text, file = read_text(path), str(path)
    try:
        content = parse_json(text, file)
    except _ManyValues:
        return [
            Record.of(parse_json(line, f"{file}: line {k}"), file, f"line {k}")
            for k, line in enumerate(lines(text), 1)
            if line.strip()
        ]
    if not isinstance(content, list):
        return [Record.of(content, file, "")]
    return [Record.of(entry, file, f"record {k}") for k, entry in enumerate(content)]


def read_table(path: Path, columns: Sequence[str]) -> list[Record]:
    """The rows of a CSV file; commas, semicolons or tabs part its fields, whichever finds `columns` in the header.

    Raises:
        UserError: it is no such table, or a row has another number of fields; the line is named.
    """
    text, file = read_text(path), str(path)
    header: list[str] = []
    for delimiter in DELIMITERS:
        rows = _rows(text, file, delimiter)
        with contextlib.suppress(UserError):  # a quoted header reads wrongly by another delimiter
            found = [name.strip() for name in next(rows, (1, []))[1]]
            header = max(header, found, key=len)
            if set(columns) <= set(found):
                header = found
                break
    else:
        lacking = next((column for column in columns if column not in header), columns[0])
        known = ", ".join(header) or "nothing"
        raise UserError(
            f"{file}: line 1: no column {lacking!r}; the header has {known}; rename one, or name "
            "columns with bita-prepare's --columns"
        )
    for column in columns:
        if header.count(column) > 1:
            raise UserError(f"{file}: line 1: column {column!r} is there twice; name one of them otherwise")
    records = []
    for line, row in rows:
        record = Record(file, f"line {line}", dict(zip(header, row, strict=False)))
        if len(row) != len(header):
            raise record.fault(
                f"{len(row)} fields, the header has {len(header)}; put quotation marks around a field that holds "
                "the delimiter"
            )
        records.append(record)
    return records


def _rows(text: str, file: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line where it starts, fields) of every row that is not blank."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))  # a column may hold an image as text
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{file}: line {line}: not CSV ({error})") from None


class Ids:
    """The ids of one file or data set, which are all numbers or all text."""

    def __init__(self) -> None:
        self._first: tuple[Id, str] | None = None

    def see(self, record: Record, key: str = "image_id") -> Id:
        """Return the id of a record; raises UserError where it is of another kind than those before."""
        image_id = record.image_id(key)
        first, where = self._first = self._first or (image_id, record.place)
        if type(image_id) is not type(first):
            raise record.fault(
                f"{key} {image_id!r} is {kind(image_id)}, but {first!r} of {where} is {kind(first)}; write all alike"
            )
        return image_id


def ordered(ids: Iterable[K]) -> list[K]:
    """Ids, ascending: numbers before text."""
    return sorted(ids, key=lambda image_id: (isinstance(image_id, str), image_id))


def twin(image_id: Id, ids: Iterable[Id]) -> str:
    """For the end of a message that an id is unknown: that it is there, but of the other kind."""
    for other in ids:
        if type(other) is not type(image_id) and str(other) == str(image_id):
            return f": it is {kind(image_id)}, {other!r} is {kind(other)}; write both alike"
    return ""
