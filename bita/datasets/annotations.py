"""Annotation files of the framework's own form: records of {image, caption, image_id}, and COCO ground truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bita.errors import UserError
from bita.records import Id, Ids, Record, kind, load_json, read_object


@dataclass(frozen=True, slots=True)
class CaptionRecord:
    """One caption of one image."""

    image: str
    """Path below the image folder."""
    caption: str
    image_id: Id
    """The dataset's own, unique within it."""


def read_annotations(files: Sequence[Path]) -> list[CaptionRecord]:
    """Read annotation files: JSON lists of {image, caption, image_id}; a caption may be a list of captions.

    Raises:
        UserError: a file is no JSON list, a record lacks a field or has an empty caption, ids are text here and numbers
            there, or an image id stands for two images or an image has two ids. File and record are named.
    """
    records: list[CaptionRecord] = []
    image_of: dict[Id, str] = {}
    id_of: dict[str, Id] = {}
    ids = Ids()
    for path in files:
        content = load_json(path)
        if not isinstance(content, list):
            raise UserError(f"{path}: wanted a list of {{image, caption, image_id}}, found {kind(content)}")
        if not content:
            raise UserError(f"{path}: the list is empty")
        for index, value in enumerate(content):
            entry = Record.of(value, str(path), f"record {index}")
            image = entry.text("image")
            entry = entry.about(image)
            image_id = ids.see(entry)
            if image_of.setdefault(image_id, image) != image:
                raise entry.fault(f"image_id {image_id} is that of {image_of[image_id]}; ids must differ")
            if id_of.setdefault(image, image_id) != image_id:
                raise entry.fault(f"image_id {image_id}, but {id_of[image]} in an earlier record")
            records += [CaptionRecord(image, caption, image_id) for caption in said(entry, "caption")]
    return records


def captions_by_image(records: Iterable[CaptionRecord]) -> dict[Id, list[str]]:
    """Return the captions of every image, images in the order in which they come."""
    captions: dict[Id, list[str]] = {}
    for record in records:
        captions.setdefault(record.image_id, []).append(record.caption)
    return captions


def read_ground_truth(path: Path) -> dict[Id, list[str]]:
    """Read the references of every image from a COCO file; raises UserError naming file and record."""
    references: dict[Id, list[str]] = {}
    ids = Ids()
    for entry in read_object(path).objects("annotations"):
        references.setdefault(ids.see(entry), []).extend(said(entry, "caption"))
    return references


def said(entry: Record, *keys: str) -> list[str]:
    """Return the captions of a record, in the one of its fields `keys` that is there; none of them empty."""
    captions = entry.captions(*keys)
    if not captions or not all(caption.strip() for caption in captions):
        raise entry.fault("caption is empty")
    return captions
