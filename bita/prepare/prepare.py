"""Published files to the framework's own form: annotation files, ground truth, image folder, dataset card.

    OUT/annotations/{train,val,test}.json   lists of {"image", "caption", "image_id"}, one record a caption
    OUT/annotations/{val,test}_gt.json      COCO ground truth: {"images": […], "annotations": […]}
    OUT/images                              link to the image folder (or a copy)
    OUT/dataset_card.md                     counts, and what was left out

An image's id is its place in the published list, whatever is left out: unique across classes and splits, and
the same from run to run. A second run writes nothing: it checks that what is there is what it would write.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from bita.datasets.names import ImageFolder
from bita.errors import UserError
from bita.files import link, replacing, sha256, write_text
from bita.machine import in_threads
from bita.prepare.archives import find_file, find_images, open_source
from bita.prepare.card import PreparedImage, Report, dataset_card
from bita.prepare.sources import PUBLISHED, SPLITS, SourceImage
from bita.processors.rgb import open_rgb
from bita.records import half_pair, has_words


@dataclass(frozen=True)
class Source:
    """What a reader found: images with captions, where the files are, and what the dataset is called."""

    name: str
    title: str
    records: list[SourceImage]
    images: Path
    files: tuple[Path, ...]
    """The annotation files."""
    draw: Mapping[str, float] | None = None
    """Share of the usable images that `val` and `test` get; None: splits are declared."""


def published_source(name: str, source: Path, out: Path) -> Source:
    """Open a dataset of the `PUBLISHED` table in its published layout, in a folder or an archive."""
    layout = PUBLISHED[name]
    folder = open_source(source, out)
    annotation = find_file(folder, layout.annotation)
    records = layout.read(annotation)
    return Source(
        name, layout.title, records, find_images(annotation.parent, layout.images, out), (annotation,)
    )


def prepare(
    source: Source,
    out: Path,
    *,
    copy_images: bool = False,
    overwrite: bool = False,
    every_split: bool = False,
) -> Report:
    """Write `source` in the framework's form below `out`, or check what an earlier run wrote there.

    Args:
        source: images, captions and files.
        out: the folder of the prepared dataset.
        copy_images: copy the images into `out/images` instead of linking to their folder.
        overwrite: replace files that differ from what the source gives; otherwise that is an error.
        every_split: that one of train, val and test has no usable image is an error.

    Raises:
        UserError: no image is usable, none is left for training, or a file in `out` differs.
    """
    report = select(source)
    _check_splits(source, report, every_split)
    files = {f"annotations/{name}": text for name, text in annotation_files(report.kept).items()}
    checksums = {path.name: sha256(path) for path in source.files}
    files["dataset_card.md"] = dataset_card(source.name, source.title, report, checksums, out.absolute().name)
    stale = [
        name
        for name, text in files.items()
        if (out / name).is_file() and (out / name).read_bytes() != text.encode()
    ]
    surplus = [  # of a split that the source no longer has
        path
        for path in sorted((out / "annotations").glob("*.json"))
        if f"annotations/{path.name}" not in files and path.stem.removesuffix("_gt") in SPLITS
    ]
    stale += [f"annotations/{path.name}" for path in surplus]
    images_stale = _images_differ(out / "images", source.images, copy_images)
    if (stale or images_stale) and not overwrite:
        names = ", ".join(stale + ["images"] * images_stale)
        raise UserError(f"{out}: differs from what the source gives ({names}); --overwrite replaces it")
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    for path in surplus:
        path.unlink()
    _place_images(source.images, out / "images", report, copy_images)
    for name, text in files.items():
        if (out / name).is_file() and name not in stale:
            report.unchanged.append(name)
        else:
            write_text(out / name, text)
            report.written.append(name)
    return report


def _check_splits(source: Source, report: Report, every_split: bool) -> None:
    """Raise UserError where nothing is usable, nothing is left for training, or `every_split` is not there."""
    where = source.files[0] if source.files else source.images
    left_out = f"; left out, the first: {': '.join(report.left_out[0])}" if report.left_out else ""
    if not report.kept:
        raise UserError(f"{where}: none of {len(source.records)} records is usable{left_out}")
    empty = [split for split in SPLITS if all(image.split != split for image in report.kept)]
    if source.draw is not None and "train" in empty:
        raise UserError(
            f"{where}: {len(report.kept)} usable images are too few to draw splits from{left_out}"
        )
    if every_split and empty:
        declared = "declare no splits (by folders or a column), so that they are drawn"
        what = declared if source.draw is None else "draw some"
        raise UserError(
            f"{where}: no usable image is for {' and '.join(empty)}; add some, or {what}{left_out}"
        )


def select(source: Source) -> Report:
    """Judge every record of `source`: what is usable is kept, and drawn from; the rest is named with its reason."""
    folder = ImageFolder(source.images)
    found = [folder.find(record.image) if _is_inside(record.image) else [] for record in source.records]
    broken = in_threads(lambda names: _fault(source.images / names[0]) if len(names) == 1 else None, found)
    kept: list[PreparedImage] = []
    left_out: list[tuple[str, str]] = []
    notes: list[str] = []
    first: dict[str, str] = {}
    for index, (record, names, fault) in enumerate(zip(source.records, found, broken, strict=True)):
        captions = tuple(caption for caption in record.captions if caption.strip())
        reason = _reason(record, names, fault, captions, first, drawn=source.draw is not None)
        if reason is not None:
            left_out.append((_printable(" ".join(dict.fromkeys((record.where, record.image)))), reason))
            continue
        first[names[0]] = record.where
        kept.append(PreparedImage(index, names[0], record.split, captions, record.category))
        empty = len(record.captions) - len(captions)
        if empty:
            notes.append(f"{names[0]}: {empty} of {len(record.captions)} captions are empty and left out")
    notes += _caption_notes(kept)
    if source.draw is not None:
        kept = drawn(kept, source.draw)
        shares = " and ".join(f"{share:.0%} for {split}" for split, share in source.draw.items())
        notes.insert(0, f"splits were drawn, not declared: {shares}")
    return Report(kept, left_out, [_printable(note) for note in notes])


def drawn(images: Sequence[PreparedImage], shares: Mapping[str, float]) -> list[PreparedImage]:
    """Return the images with their splits drawn, by the hashes of their names: always the same for the same images.

    One that comes or goes moves others over the borders only, and from training to val before any gets to test.

    Args:
        images: usable ones.
        shares: those of `test` and `val`; each gets one image at least. The rest is for training.
    """
    names = sorted((image.image for image in images), key=lambda name: hashlib.sha256(name.encode()).digest())
    split_of: dict[str, str] = {}
    for split in ("test", "val"):
        share = shares.get(split, 0)
        count = max(1, round(share * len(images))) if share else 0
        split_of |= dict.fromkeys(names[:count], split)
        names = names[count:]
    return [replace(image, split=split_of.get(image.image, "train")) for image in images]


def _printable(name: str) -> str:
    """Return a name as one line, with bytes that are no UTF-8 written out."""
    return " ".join(name.encode("utf-8", "backslashreplace").decode().splitlines())


def annotation_files(images: Sequence[PreparedImage]) -> dict[str, str]:
    """Return the text of every annotation file by its name; a split without images has none."""
    files: dict[str, str] = {}
    for split in SPLITS:
        chosen = [image for image in images if image.split == split]
        if not chosen:
            continue
        records = [
            {"image": image.image, "caption": caption, "image_id": image.image_id}
            for image in chosen
            for caption in image.captions
        ]
        files[f"{split}.json"] = f"[\n{_lines(records)}\n]\n"
        if split != "train":
            files[f"{split}_gt.json"] = _ground_truth(chosen)
    return files


def _ground_truth(images: Sequence[PreparedImage]) -> str:
    entries: list[dict[str, object]] = []
    for image in images:
        category = {"category": image.category} if image.category else {}
        entries.append({"id": image.image_id, "file_name": image.image, **category})
    pairs = [(image.image_id, caption) for image in images for caption in image.captions]
    annotations = [
        {"id": k, "image_id": image_id, "caption": caption} for k, (image_id, caption) in enumerate(pairs)
    ]
    return f'{{"images": [\n{_lines(entries)}\n],\n"annotations": [\n{_lines(annotations)}\n]}}\n'


def _lines(records: Sequence[dict[str, object]]) -> str:
    return ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)


def _reason(
    record: SourceImage,
    names: list[str],
    fault: str | None,
    captions: Sequence[str],
    first: dict[str, str],
    *,
    drawn: bool,
) -> str | None:
    """Return why a record cannot be used, or None."""
    if not drawn and record.split not in SPLITS:
        return f"split {record.split!r} is none of {', '.join(SPLITS)}" if record.split else "has no split"
    if not _is_inside(record.image):
        return "path leaves the image folder"
    if half_pair(record.image) is not None:
        return "its name is not UTF-8; rename the file"
    if not names:
        return "image is missing"
    if len(names) > 1:
        return f"image could be {' or '.join(names)}; rename one"
    if fault is not None:
        return fault
    if not any(has_words(caption) for caption in captions):
        return "no caption"
    return f"image is listed before, as {first[names[0]]}" if names[0] in first else None


def _is_inside(image: str) -> bool:
    path = PurePosixPath(image)
    return not path.is_absolute() and ".." not in path.parts


def _fault(path: Path) -> str | None:
    """Decode an image file; what is wrong with it, or None."""
    try:
        open_rgb(path)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _caption_notes(images: Sequence[PreparedImage]) -> list[str]:
    """Name the images that have another number of captions than most, or a caption without a word."""
    counts = Counter(len(image.captions) for image in images)
    if not counts:
        return []
    usual = counts.most_common(1)[0][0]
    notes = []
    for image in images:
        if len(image.captions) != usual:
            notes.append(f"{image.image}: {len(image.captions)} captions, where most images have {usual}")
        notes += [
            f"{image.image}: caption {text!r} has no word" for text in image.captions if not has_words(text)
        ]
    return notes


def _images_differ(target: Path, images: Path, copy_images: bool) -> bool:
    """Return whether `target` exists and is not what a run would make it."""
    if target.is_symlink():
        return copy_images or target.resolve() != images.resolve()
    return target.exists() and not target.is_dir()


def _place_images(images: Path, target: Path, report: Report, copy_images: bool) -> None:
    """Link `target` to the image folder, or copy the kept images; a folder that is there is completed."""
    if target.is_dir() and not target.is_symlink():
        copy_images = target.resolve() != images.resolve()
    elif not copy_images:
        if target.is_symlink() and target.resolve() == images.resolve():
            report.unchanged.append("images")
            return
        link(target, str(images.resolve()))
        report.written.append("images")
        return
    if target.is_symlink():
        target.unlink()
    copied = 0
    for image in report.kept if copy_images else []:
        origin, copy = images / image.image, target / image.image
        if copy.is_file() and filecmp.cmp(origin, copy, shallow=False):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing(copy) as part:
            shutil.copyfile(origin, part)
        copied += 1
    (report.written if copied else report.unchanged).append("images")
