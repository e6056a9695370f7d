"""Generic forms of caption data: COCO JSON, Karpathy JSON, CSV and JSON-lines tables, image folders with text files.

Splits are always declared: by the file (``train=FILE``), by the record, or by the folder; none is ever drawn.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bita.errors import UserError
from bita.files import field, load_json
from bita.prepare.archives import open_source
from bita.prepare.prepare import Source
from bita.prepare.sources import SPLITS, SourceImage, read_karpathy
from bita.processors.rgb import IMAGE_SUFFIXES

FORMS = ("coco", "karpathy", "csv", "jsonl", "text")
COLUMNS = {"image": "image", "caption": "caption", "split": "split"}


def generic_source(
    name: str,
    form: str,
    source: Path,
    out: Path,
    *,
    annotations: Sequence[str] = (),
    images: str = "",
    columns: Mapping[str, str] | None = None,
) -> Source:
    """Open data of one of the ``FORMS``.

    Args:
        name: The dataset's name.
        form: ``coco``: files as ``SPLIT=FILE``. ``karpathy``: one file, with the split in every record. ``csv``,
            ``jsonl``: a table with a row a caption (or a list of captions, in JSON lines), with the split in a column
            or as ``SPLIT=FILE``. ``text``: folders train/, val/, test/ with a text file beside every image, one
            caption a line.
        source: Folder or archive.
        out: Folder of the prepared dataset (archives are unpacked there).
        annotations: Files below ``source``, each maybe with ``SPLIT=`` in front.
        images: Image folder below ``source``.
        columns: Names of the table's columns for ``image``, ``caption`` and ``split``.

    Raises:
        UserError: A file is missing or is not what the form says, or no split is declared.
    """
    folder = open_source(source, out)
    root = folder / images
    if not root.is_dir():
        raise UserError(f"{root}: image folder is missing; give it with --images, below {folder}")
    if form == "text":
        if annotations:
            raise UserError("--annotations: form text takes none; captions lie beside the images")
        return Source(name, name, list(_read_text_folder(root)), root, ())
    if not annotations:
        raise UserError(f"--annotations: form {form} needs annotation files, as [SPLIT=]FILE below {folder}")
    records: list[SourceImage] = []
    files = []
    for entry in annotations:
        split, path = _split_and_file(entry, folder)
        files.append(path)
        if form == "coco":
            records += _read_coco(path, split)
        elif form == "karpathy":
            records += read_karpathy(path)
        else:
            rows = _csv_rows(path) if form == "csv" else _json_rows(path)
            records += _read_table(path, rows, {**COLUMNS, **(columns or {})}, split)
    return Source(name, name, records, root, tuple(files))


def _split_and_file(entry: str, folder: Path) -> tuple[str | None, Path]:
    split, equals, name = entry.partition("=")
    if not equals:
        return None, folder / entry
    if split not in SPLITS:
        raise UserError(f"--annotations {entry}: split {split!r} is none of {', '.join(SPLITS)}")
    return split, folder / name


def _read_coco(path: Path, split: str | None) -> list[SourceImage]:
    """Read ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``."""
    if split is None:
        raise UserError(f"{path}: a COCO file has no splits; declare its split as train={path.name}")
    content = load_json(path)
    captions: dict[object, list[str]] = {}
    names: dict[object, tuple[str, str]] = {}
    for index, image in enumerate(field(content, "images", list, path, "top level")):
        where = f"images[{index}]"
        name = field(image, "file_name", str, path, where)
        key = field(image, "id", object, path, where)
        if key in names:
            raise UserError(f"{path}: {where} ({name}): id {key} is that of {names[key][0]}; ids must differ")
        names[key] = (name, where)
    for index, annotation in enumerate(field(content, "annotations", list, path, "top level")):
        where = f"annotations[{index}]"
        key = field(annotation, "image_id", object, path, where)
        if key not in names:
            raise UserError(f"{path}: {where}: image_id {key} is none of the file's images")
        captions.setdefault(key, []).append(field(annotation, "caption", str, path, where))
    return [
        SourceImage(name, split, tuple(captions.get(key, ())), where) for key, (name, where) in names.items()
    ]


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                yield (
                    f"line {reader.line_num}",
                    {key: value for key, value in row.items() if value is not None},
                )
    except FileNotFoundError:
        raise UserError(f"{path}: file is missing") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not CSV ({' '.join(str(error).split())})") from None


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"line {number}", json.loads(line)
    except FileNotFoundError:
        raise UserError(f"{path}: file is missing") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {number}: not JSON ({error.msg})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None


def _read_table(
    path: Path, rows: Iterator[tuple[str, dict[str, Any]]], columns: Mapping[str, str], split: str | None
) -> list[SourceImage]:
    """Gather the rows of every image; its split is the file's, or its rows', which must agree."""
    found: dict[str, tuple[str, str, list[str]]] = {}
    for where, row in rows:
        image = field(row, columns["image"], str, path, where)
        part = split or field(row, columns["split"], str, path, f"{where} ({image})")
        value = row.get(columns["caption"])
        texts = (
            value
            if isinstance(value, list)
            else [field(row, columns["caption"], str, path, f"{where} ({image})")]
        )
        first, declared, captions = found.setdefault(image, (where, part, []))
        if declared != part:
            raise UserError(f"{path}: {where} ({image}): split {part!r}, but {declared!r} at {first}")
        captions += [text for text in texts if isinstance(text, str)]
    return [SourceImage(image, part, tuple(texts), where) for image, (where, part, texts) in found.items()]


def _read_text_folder(root: Path) -> Iterator[SourceImage]:
    """Images below train/, val/ and test/, each with a text file of its name: one caption a line."""
    if not any((root / split).is_dir() for split in SPLITS):
        raise UserError(f"{root}: no folder train/, val/ or test/; splits are declared by folders")
    for split in SPLITS:
        for path in sorted((root / split).rglob("*")):
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            name = path.relative_to(root).as_posix()
            text = path.with_suffix(".txt")
            try:
                lines = text.read_text(encoding="utf-8-sig").splitlines() if text.is_file() else []
            except UnicodeDecodeError:
                raise UserError(f"{text}: not UTF-8 text") from None
            yield SourceImage(name, split, tuple(line for line in lines if line.strip()), name)
