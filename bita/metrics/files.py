"""References and hypotheses from files: COCO ground truth and results, lists of records, JSON lines.

References: COCO (``{"images": [{"id"}], "annotations": [{"image_id", "caption"}]}``), or records ``{"image_id",
"caption"}`` or ``{"image_id", "captions": […]}`` in a JSON list or one a line. Hypotheses: the same, one caption an
image; a list of ``{"image_id", "caption"}`` is what COCO calls results and what a run writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bita.errors import UserError
from bita.metrics.checks import check_ids

Id = int | str
"""As in the file; text that is a plain number counts as that number."""


@dataclass(frozen=True)
class Pairing:
    """References and hypotheses under numbers.

    Attributes:
        references: number → captions.
        hypotheses: number → caption.
        names: number → id in the files; None when the ids are numbers already.
    """

    references: dict[int, list[str]]
    hypotheses: dict[int, str]
    names: dict[int, str] | None


def read_references(path: Path) -> dict[Id, list[str]]:
    """Image id → captions; an image without annotation has none.

    Raises:
        UserError: not readable, not JSON, a record lacks a field.
    """
    content = _content(path)
    references: dict[Id, list[str]] = {}
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        references = {_id(image.get("id"), path, k): [] for k, image in enumerate(content["images"], 1)}
    for image_id, captions in _records(content, path):
        references.setdefault(image_id, []).extend(captions)
    return references


def read_hypotheses(path: Path) -> dict[Id, str]:
    """Image id → caption.

    Raises:
        UserError: not readable, not JSON, a record lacks a field, an image has several captions.
    """
    hypotheses: dict[Id, str] = {}
    twice: dict[Id, None] = {}
    for image_id, captions in _records(_content(path), path):
        if image_id in hypotheses or len(captions) != 1:
            twice[image_id] = None
        hypotheses[image_id] = captions[0] if captions else ""
    if twice:
        shown = ", ".join(map(str, list(twice)[:5])) + (", …" if len(twice) > 5 else "")
        raise UserError(
            f"{path}: {len(twice)} of {len(hypotheses)} images do not have exactly one caption: {shown}"
        )
    return hypotheses


def read_images(path: Path) -> dict[Id, dict[str, Any]]:
    """Image id → its entry in COCO ground truth, such as its `file_name` and `category`; {} of other files.

    Raises:
        UserError: not readable, not JSON.
    """
    content = _content(path)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        return {}
    return {_id(entry.get("id"), path, k): entry for k, entry in enumerate(entries, 1)}


def paired(references: Mapping[Id, list[str]], hypotheses: Mapping[Id, str]) -> Pairing:
    """Both under numbers: the ids themselves, or running numbers from 1 where an id is text.

    Raises:
        UserError: ids do not fit; they are named as the files have them.
    """
    check_ids(references, hypotheses)
    ids = {*references, *hypotheses}
    if all(isinstance(image_id, int) for image_id in ids):
        return Pairing(
            {int(n): list(texts) for n, texts in references.items()},
            {int(n): text for n, text in hypotheses.items()},
            None,
        )
    numbers = {image_id: n for n, image_id in enumerate(sorted(ids, key=str), 1)}
    return Pairing(
        {numbers[image_id]: list(texts) for image_id, texts in references.items()},
        {numbers[image_id]: text for image_id, text in hypotheses.items()},
        {n: str(image_id) for image_id, n in numbers.items()},
    )


def _content(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise UserError(f"{path}: not JSON: {error.msg} in line {error.lineno}") from error
    return [_line(line, path, k) for k, line in enumerate(text.split("\n"), 1) if line.strip()]


def _line(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {number} is not JSON: {error.msg}") from error


def _records(content: Any, path: Path) -> Iterable[tuple[Id, list[str]]]:
    """(image id, captions) of each record, in order."""
    if isinstance(content, dict):
        content = content.get("annotations", [content])
    if not isinstance(content, list):
        raise UserError(f"{path}: neither COCO nor a list of records with image_id and caption")
    for k, record in enumerate(content, 1):
        if not isinstance(record, dict) or not record.keys() & {"caption", "captions"}:
            raise UserError(f"{path}: record {k} has no caption")
        captions = record["captions"] if "captions" in record else [record["caption"]]
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise UserError(f"{path}: record {k}: its caption is not text")
        yield _id(record.get("image_id"), path, k), captions


def _id(value: Any, path: Path, record: int) -> Id:
    if isinstance(value, str) and value.isdecimal() and str(int(value)) == value:
        return int(value)
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    raise UserError(f"{path}: record {record} has no image id (a number or text)")
