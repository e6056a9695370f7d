"""References and hypotheses from files: COCO ground truth and results, lists of records, JSON lines.

References: COCO (`{"images": [{"id"}], "annotations": [{"image_id", "caption"}]}`), or records `{"image_id",
"caption"}` or `{"image_id", "captions": […]}` in a JSON list or one a line. Hypotheses: the same, one caption an
image; a list of `{"image_id", "caption"}` is what COCO calls results and what a run writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bita.errors import UserError
from bita.metrics.checks import check_ids, named
from bita.records import Id, Ids, Record, read_records

CAPTION = ("caption", "captions")


def read_references(path: Path) -> dict[Id, list[str]]:
    """Image id → captions; an image without annotation has none.

    Raises:
        UserError: a file or record cannot be read as it is (`bita.records`), or ids are text here and numbers there.
    """
    images, records = _read(path)
    ids = Ids()
    references: dict[Id, list[str]] = {ids.see(image, "id"): [] for image in images}
    for record in records:
        references.setdefault(ids.see(record), []).extend(record.captions(*CAPTION))
    return references


def read_hypotheses(path: Path) -> dict[Id, str]:
    """Image id → caption.

    Raises:
        UserError: as for `read_references`; an image has several captions or none.
    """
    captions: dict[Id, list[str]] = {}
    ids = Ids()
    for record in _read(path)[1]:
        captions.setdefault(ids.see(record), []).extend(record.captions(*CAPTION))
    odd = [image_id for image_id, texts in captions.items() if len(texts) != 1]
    if odd:
        raise UserError(f"{path}: {named(odd, len(captions), 'image')} not with exactly one caption")
    return {image_id: texts[0] for image_id, texts in captions.items()}


def read_images(path: Path) -> dict[str, Record]:
    """Image id, as text → its entry in COCO ground truth, with its `file_name` and `category`; {} of other files.

    Raises:
        UserError: as for `read_references`; two images have one id.
    """
    images: dict[str, Record] = {}
    for image in _read(path)[0]:
        name = str(image.image_id("id"))
        if name in images:
            raise image.fault(f"id {name} is that of {images[name].place}; ids must differ")
        images[name] = image
    return images


def paired(
    references: Mapping[Id, list[str]], hypotheses: Mapping[Id, str]
) -> tuple[dict[Id, list[str]], dict[Id, str]]:
    """Both under ids of one kind, since `7` in one file and `"7"` in the other are one image: numbers if all are.

    Raises:
        UserError: ids do not fit; they are named as the files have them.
    """
    numbers = all(
        isinstance(image_id, int) or _is_number(image_id) for image_id in (*references, *hypotheses)
    )

    def key(image_id: Id) -> Id:
        return int(image_id) if numbers else str(image_id)

    ours = {key(image_id): texts for image_id, texts in references.items()}
    theirs = {key(image_id): text for image_id, text in hypotheses.items()}
    check_ids(ours, theirs)
    return ours, theirs


def _is_number(text: str) -> bool:
    return len(text) < 19 and text.isdecimal() and str(int(text)) == text


def _read(path: Path) -> tuple[list[Record], list[Record]]:
    """Return the images that a COCO file lists, and what has captions."""
    records = read_records(path)
    if len(records) != 1 or "annotations" not in records[0]:
        return [], records
    return records[0].objects("images") if "images" in records[0] else [], records[0].objects("annotations")
