"""Generic forms of caption data: COCO JSON, Karpathy JSON, CSV and JSON-lines tables, image folders with text files.

Splits are declared: by the file (`train=FILE`), by the record, or by the folder. None is drawn unless that is asked for
(`draw`); then it is noted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bita.datasets.names import is_system_file, plain
from bita.errors import UserError
from bita.prepare.archives import open_source
from bita.prepare.prepare import Source
from bita.prepare.sources import SPLITS, SourceImage, read_karpathy
from bita.processors.rgb import IMAGE_SUFFIXES
from bita.records import Id, Ids, lines, read_object, read_records, read_table, read_text, twin

FORMS = ("coco", "karpathy", "csv", "jsonl", "text")
AUTO = "auto"
"""Stands for the form that `recognise` finds."""
UNDECLARED = ""
"""Split of a record that has none, or none yet."""
IF_THERE = "?"
"""Stands for the split that a row of a table declares, where it has such a column."""
SPLIT_NAMES = {name: name for name in SPLITS} | {"valid": "val", "validation": "val"}
"""What a column or a folder calls a split, in small letters → the split."""
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
    draw: Mapping[str, float] | None = None,
) -> Source:
    """Open data of one of the `FORMS`.

    Args:
        name: the dataset's name.
        form: `coco`: files as `SPLIT=FILE`. `karpathy`: one file, with the split in every record. `csv`,
            `jsonl`: a table with a row a caption (or a list of captions, in JSON lines), with the split in a column
            or as `SPLIT=FILE`. `text`: folders train/, val/, test/ with a text file beside every image, one
            caption a line. `auto`: what `recognise` finds.
        source: folder or archive.
        out: folder of the prepared dataset (archives are unpacked there).
        annotations: files below `source`, each maybe with `SPLIT=` in front.
        images: image folder below `source`.
        columns: names of the table's columns for `image`, `caption` and `split`.
        draw: share of the images that `val` and `test` get (`prepare.drawn`); nothing declares a split then, and the
            text files of form `text` lie anywhere beside their images. With `auto`, only where nothing declares one.

    Raises:
        UserError: a file is missing or is not what the form says, or no split is declared.
    """
    folder = open_source(source, out)
    recognised = form == AUTO
    if recognised:
        folder = folder if images else _only_folder(folder)
        form, annotations = recognise(folder)
    root = folder / images
    if not root.is_dir():
        raise UserError(f"{root}: image folder is missing; give it with --images, below {folder}")
    records: list[SourceImage] = []
    files = []
    if form == "text":
        if annotations:
            raise UserError("--annotations: form text takes none; captions lie beside the images")
        records += _read_text_folder(root, declared=draw is None and not recognised)
    elif not annotations:
        raise UserError(f"--annotations: form {form} needs annotation files, as [SPLIT=]FILE below {folder}")
    for entry in annotations:
        split, path = _split_and_file(entry, folder)
        if draw is not None or recognised:
            split = UNDECLARED
        files.append(path)
        if form == "coco":
            records += _read_coco(path, split)
        elif form == "karpathy":
            records += read_karpathy(path)
        else:
            if recognised:  # a column that is named must be there
                split = None if "split" in (columns or {}) else IF_THERE
            records += _read_table(path, form, {**COLUMNS, **(columns or {})}, split)
    if recognised:
        records = _declared(records)
        if any(record.split != UNDECLARED for record in records):
            draw = None
        elif draw is None:
            raise UserError(
                f"{folder}: neither a column split nor folders train/, val/ and test/ declare splits; --draw them"
            )
    return Source(name, name, records, root, tuple(files), draw=draw)


def _only_folder(folder: Path) -> Path:
    """Return the folder that all lies in: archives often hold a single one."""
    inside = [path for path in folder.iterdir() if not is_system_file(path.name) and path.name[0] != "."]
    return _only_folder(inside[0]) if len(inside) == 1 and inside[0].is_dir() else folder


def _declared(records: Sequence[SourceImage]) -> list[SourceImage]:
    """Return the records with the splits that a column declares, else their folders; where neither does, as they are.

    Folders do where two of train, val and test are there, below those that all images share: one alone may be a class
    of scenes.
    """
    said = [record.split.strip() for record in records]
    if not any(said):
        folders = [[n for n in re.split(r"[/\\]", r.image)[:-1] if n not in ("", ".")] for r in records]
        levels = enumerate(zip(*folders, strict=False))  # as deep as all are
        shared = next(
            (depth for depth, names in levels if len(set(names)) > 1), min(map(len, folders), default=0)
        )
        said = [below[shared] if len(below) > shared else "" for below in folders]
        if len({SPLIT_NAMES[name.lower()] for name in said if name.lower() in SPLIT_NAMES}) < 2:
            return [replace(record, split=UNDECLARED) for record in records]
    return [
        replace(record, split=SPLIT_NAMES.get(name.lower(), name))
        for record, name in zip(records, said, strict=True)
    ]


def recognise(folder: Path) -> tuple[str, list[str]]:
    """Return the form of a folder with captions, and its annotation files: a table, else a COCO file, else texts.

    Raises:
        UserError: several files could hold the captions.
    """
    for form, ending in (("csv", ".csv"), ("jsonl", ".jsonl"), ("coco", ".json")):
        files = sorted(
            path.name for path in folder.glob("*") if path.suffix.lower() == ending and path.is_file()
        )
        if len(files) > 1:
            raise UserError(f"{folder}: captions could be in {' or '.join(files[:2])}; leave one there")
        if files:
            return form, files
    return "text", []


def _split_and_file(entry: str, folder: Path) -> tuple[str | None, Path]:
    split, equals, name = entry.partition("=")
    if not equals:
        return None, folder / entry
    if split not in SPLITS:
        raise UserError(f"--annotations {entry}: split {split!r} is none of {', '.join(SPLITS)}")
    return split, folder / name


def _read_coco(path: Path, split: str | None) -> list[SourceImage]:
    """Read `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`."""
    if split is None:
        raise UserError(f"{path}: a COCO file has no splits; declare its split as train={path.name}")
    content = read_object(path)
    captions: dict[Id, list[str]] = {}
    images: dict[Id, tuple[str, str]] = {}
    ids = Ids()
    for image in content.objects("images"):
        name, key = image.text("file_name"), ids.see(image, "id")
        if key in images:
            raise image.about(name).fault(f"id {key} is that of {images[key][0]}; ids must differ")
        images[key] = (name, image.place)
    for annotation in content.objects("annotations"):
        key = annotation.image_id()
        if key not in images:
            raise annotation.fault(f"image_id {key!r} is none of the file's images{twin(key, images)}")
        captions.setdefault(key, []).extend(annotation.captions("caption"))
    return [
        SourceImage(name, split, tuple(captions.get(key, ())), where) for key, (name, where) in images.items()
    ]


def _read_table(path: Path, form: str, columns: Mapping[str, str], split: str | None) -> list[SourceImage]:
    """Gather the rows of every image; its split is the file's, or its rows', which must agree."""
    column = columns["split"]
    needed = [name for key, name in columns.items() if key != "split" or split is None]
    found: dict[str, tuple[str, str, list[str]]] = {}
    for row in read_table(path, needed) if form == "csv" else read_records(path):
        image = row.text(columns["image"])
        row, where = row.about(image), row.place or "line 1"
        if split is None or (split == IF_THERE and row.fields.get(column) is not None):
            part = row.text(column)
        else:
            part = UNDECLARED if split == IF_THERE else split
        first, declared, captions = found.setdefault(image, (where, part, []))
        if declared != part:
            raise row.fault(f"split {part!r}, but {declared!r} at {first}")
        captions += row.captions(columns["caption"])
    return [SourceImage(image, part, tuple(texts), where) for image, (where, part, texts) in found.items()]


def _read_text_folder(root: Path, *, declared: bool) -> Iterator[SourceImage]:
    """Images below train/, val/ and test/, or where no split is `declared` anywhere, each with a text file of its name.

    A text without image, and images with texts in other folders, are listed too, so that they are named as left out.
    """
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not is_system_file(path.name))
    if declared and not set(folders) & set(SPLITS):
        raise UserError(
            f"{root}: no folder train/, val/ or test/; splits are declared by folders, or --draw them"
        )
    parts = (*SPLITS, *(folder for folder in folders if folder not in SPLITS)) if declared else (UNDECLARED,)
    for split in parts:
        files = [path for path in sorted((root / split).rglob("*")) if path.is_file()]
        files = [path for path in files if not is_system_file(path.relative_to(root).as_posix())]
        texts: dict[tuple[Path, str], list[Path]] = {}
        for path in files:
            if path.suffix.lower() == ".txt":
                texts.setdefault((path.parent, plain(path.stem)), []).append(path)
        owners: dict[Path, str] = {}
        for path in files:
            own = texts.get((path.parent, plain(path.stem)), [])
            if path.suffix.lower() not in IMAGE_SUFFIXES or (split not in SPLITS and declared and not own):
                continue
            name = path.relative_to(root).as_posix()
            own = [text for text in own if text.stem == path.stem] or own
            if len(own) > 1:
                raise UserError(
                    f"{path}: its captions could be in {own[0].name} or {own[1].name}; rename one"
                )
            for text in own:
                if owners.setdefault(text, name) != name:
                    raise UserError(f"{text}: could be of {owners[text]} or of {name}; rename one")
            yield SourceImage(name, split, tuple(_captions(own[0])) if own else (), name)
        for text in (text for group in texts.values() for text in group if text not in owners):
            name = text.relative_to(root).as_posix()
            yield SourceImage(name[: -len(text.suffix)], split, tuple(_captions(text)), name)


def _captions(text: Path) -> list[str]:
    return [line for line in lines(read_text(text)) if line.strip()]
