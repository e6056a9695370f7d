"""Whether prepared datasets are what they say: counts, files, ids, overlaps, captions.

A *problem* makes figures wrong or incomparable (a count that is not the published one, an image that does not open, an
image both trained and evaluated on) and ends in exit code 1; everything else that one should know is a *note*.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bita.datasets.annotations import CaptionRecord, captions_by_image, read_annotations, read_ground_truth
from bita.datasets.names import ImageFolder
from bita.errors import UserError
from bita.prepare.caption_stats import caption_statistics
from bita.prepare.overlap import ImageFacts, Pair, equal_files, examine, near_copies
from bita.prepare.sources import PUBLISHED, SPLITS
from bita.records import Id, ordered, twin

_NAMED = 5
"""Examples in a line of text; the JSON has all."""


@dataclass
class Verification:
    """What was found: lines for people, and the same as data."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


def verify(folders: dict[str, Path], near: int | None = None) -> Verification:
    """Verify prepared datasets (folder by name), each alone and all together.

    Args:
        folders: prepared folders; a name in the `PUBLISHED` table is held against its published counts.
        near: also look for near copies: perceptual hashes that differ in at most this many of 256 bits.

    Raises:
        UserError: a folder holds no annotation files.
    """
    result = Verification()
    images: list[ImageFacts] = []
    for name, folder in folders.items():
        images += _verify_dataset(name, folder, result)
    pairs = equal_files(images)
    if near is not None:
        pairs += near_copies(images, near)
    _report_pairs(pairs, result)
    result.data["problems"], result.data["notes"] = result.problems, result.notes
    return result


def _verify_dataset(name: str, folder: Path, result: Verification) -> list[ImageFacts]:
    """Verify one dataset by itself; returns its images for comparison with others."""
    paths = {split: folder / "annotations" / f"{split}.json" for split in SPLITS}
    paths = {split: path for split, path in paths.items() if path.is_file()}
    if not paths:
        raise UserError(
            f"{folder}: no annotations/train.json, val.json or test.json; prepare the dataset first"
        )
    splits: dict[str, list[CaptionRecord]] = {}
    for split, path in paths.items():
        try:
            splits[split] = read_annotations([path])
        except UserError as error:
            result.problems.append(str(error))
    names = [(split, image) for split in splits for image in dict.fromkeys(r.image for r in splits[split])]
    images = examine(name, ImageFolder(folder / "images"), names)
    result.data[name] = {"splits": _counts(name, splits, images, result), **_image_data(name, images, result)}
    _check_ids(name, splits, result)
    _check_ground_truth(name, folder, splits, result)
    captions = captions_by_image(record for records in splits.values() for record in records)
    if captions:
        statistics = caption_statistics(captions)
        result.data[name]["captions"] = statistics
        result.notes += _caption_notes(name, statistics, len(captions))
    return images


def _counts(
    name: str, splits: dict[str, list[CaptionRecord]], images: Sequence[ImageFacts], result: Verification
) -> dict[str, dict[str, int]]:
    """Count images and captions by split, against the published numbers where the dataset is a published one."""
    published = PUBLISHED.get(name)
    if f"{name}_caption" in PUBLISHED:
        result.notes.append(f"{name}: not held against published counts; {name}_caption=FOLDER is")
    counted = Counter(image.split for image in images)
    rows, data = [], {}
    for split in SPLITS if published else splits:
        found = counted[split]
        wanted = published.counts[split] if published else found
        data[split] = {"images": found, "published": wanted, "captions": len(splits.get(split, []))}
        rows.append(
            f"{name:16} {split:6} {found:7} {wanted if published else '-':>10} {data[split]['captions']:9}"
        )
        if found != wanted:
            known = published is not None and 0 < wanted - found <= published.lacking
            lines = result.notes if known else result.problems
            lines.append(f"{name} {split}: {found} images, published are {wanted}")
    total = sum(counts["captions"] for counts in data.values())
    if published and total != published.captions:
        known = (
            0
            < published.captions - total
            <= published.lacking * published.captions // sum(published.counts.values())
        )
        (result.notes if known else result.problems).append(
            f"{name}: {total} captions, published are {published.captions}"
        )
    result.tables += rows
    return data


def _image_data(name: str, images: Sequence[ImageFacts], result: Verification) -> dict[str, Any]:
    faults = {image.image: image.fault for image in images if image.fault is not None}
    result.problems += [f"{name}: {image}: {fault}" for image, fault in faults.items()]
    sizes = Counter("{}x{}".format(*image.size) for image in images if image.fault is None)
    usual = sizes.most_common(1)[0][0] if sizes else "none"
    if len(sizes) > 1:
        others = ", ".join(f"{count} of {size}" for size, count in sizes.most_common()[1 : _NAMED + 1])
        result.notes.append(
            f"{name}: images are {usual}, but {sum(sizes.values()) - sizes[usual]} are not ({others})"
        )
    return {"unusable_images": faults, "sizes": dict(sizes.most_common())}


def _check_ids(name: str, splits: dict[str, list[CaptionRecord]], result: Verification) -> None:
    """An id stands for one image, over all splits; an image is in one split."""
    image_of: dict[Id, str] = {}
    split_of: dict[str, str] = {}
    for split, records in splits.items():
        for record in {record.image_id: record for record in records}.values():
            if image_of.setdefault(record.image_id, record.image) != record.image:
                other = image_of[record.image_id]
                result.problems.append(f"{name}: id {record.image_id} is both {other} and {record.image}")
            if split_of.setdefault(record.image, split) != split:
                result.problems.append(
                    f"{name}: {record.image} is in {split_of[record.image]} and in {split}"
                )


def _check_ground_truth(
    name: str, folder: Path, splits: dict[str, list[CaptionRecord]], result: Verification
) -> None:
    """The ground truth of a split has the captions of its annotation file."""
    for split, records in splits.items():
        path = folder / "annotations" / f"{split}_gt.json"
        if not path.is_file():
            if split != "train":
                result.notes.append(
                    f"{name}: no {path.name}; the captions of {split}.json are scored against"
                )
            continue
        try:
            truth = read_ground_truth(path)
        except UserError as error:
            result.problems.append(str(error))
            continue
        captions = captions_by_image(records)
        differing = [key for key in captions.keys() | truth.keys() if captions.get(key) != truth.get(key)]
        if differing:
            shown = ordered(differing)[0]
            other = truth if shown in captions else captions
            result.problems.append(
                f"{path}: differs from {split}.json at {len(differing)} images, id {shown}{twin(shown, other)}"
            )


def _caption_notes(name: str, statistics: dict[str, Any], images: int) -> list[str]:
    notes = [
        f"{name}: {statistics['distinct_captions']} distinct captions of {statistics['captions']};"
        f" {statistics['images_with_repeats']} of {images} images have repeats among theirs,"
        f" {statistics['images_with_one_caption_repeated']} a single one",
        "{}: {vocabulary} words ({once} occur once); a caption has {shortest} to {longest}, {mean} in the mean".format(
            name, **statistics["words"]
        ),
    ]
    if len(statistics["captions_an_image"]) > 1:
        notes.append(f"{name}: captions an image (number: images): {statistics['captions_an_image']}")
    for key in ("without_a_word", "short", "non_ascii", "typing_error_candidates"):
        values = statistics[key]
        if values:
            shown = (
                [f"{a} ({b}?)" for a, b in values.items()] if isinstance(values, dict) else map(repr, values)
            )
            notes.append(
                f"{name}: {key.replace('_', ' ')}: {len(values)}, such as {', '.join(list(shown)[:_NAMED])}"
            )
    return notes


def _report_pairs(pairs: Sequence[Pair], result: Verification) -> None:
    """Sum up repeated images by the two places where they are."""
    groups: dict[tuple[str, str, bool], list[Pair]] = {}
    for pair in pairs:
        if pair.first.place > pair.second.place:
            pair = replace(pair, first=pair.second, second=pair.first)
        groups.setdefault((pair.first.place, pair.second.place, pair.exact), []).append(pair)
    result.data["repeated_images"] = []
    for (first, second, exact), group in sorted(groups.items()):
        shown = ", ".join(f"{pair.first.image} = {pair.second.image}" for pair in group[:_NAMED])
        kind = "equal" if exact else "nearly equal"
        line = f"{first} and {second}: {len(group)} pairs of {kind} images, such as {shown}"
        leak = group[0].leaks
        (result.problems if leak and exact else result.notes).append(line)
        result.data["repeated_images"].append(
            {
                "first": first,
                "second": second,
                "exact": exact,
                "train_and_evaluation": leak,
                "pairs": [[pair.first.image, pair.second.image, pair.distance] for pair in group],
            }
        )
