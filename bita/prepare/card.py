"""What a prepared dataset holds: as a report, and as its card in Markdown, the same bytes from run to run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from bita.prepare.sources import PUBLISHED, SPLITS

_ENTRY = """\
datasets:
  {name}:
    build_info:
      annotations:
{splits}
      images: {{storage: {images}}}
"""


@dataclass(frozen=True)
class PreparedImage:
    """One usable image: its id, its file below the image folder, its captions without empty ones."""

    image_id: int
    image: str
    split: str
    captions: tuple[str, ...]
    category: str | None


@dataclass
class Report:
    """What one run of `prepare` kept, left out, and wrote."""

    kept: list[PreparedImage]
    left_out: list[tuple[str, str]]
    """(record and image, reason) of every image that was left out."""
    notes: list[str]
    """Oddities of images that were kept."""
    written: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)


def dataset_card(name: str, title: str, report: Report, checksums: Mapping[str, str], folder: str) -> str:
    """Return the card's text: counts by split, what was left out and why, and a YAML entry to start from.

    Args:
        name: the dataset's.
        title: what it is called.
        report: what was kept and left out.
        checksums: annotation file → sha256.
        folder: the prepared dataset's, below `env.cache_root`.
    """
    parts = [f"# {title}\n", f"Dataset `{name}` in the form that `bita` reads. Made from:\n"]
    parts += [f"- `{file}`, sha256 `{digest}`" for file, digest in checksums.items()]
    parts += ["\n## Counts\n", *_counts(name, report)]
    parts += [
        f"\n## Left out ({len(report.left_out)})\n",
        *(f"- {what}: {why}" for what, why in report.left_out),
    ]
    parts += [f"\n## Notes ({len(report.notes)})\n", *(f"- {note}" for note in report.notes)]
    parts += ["\n## Configuration\n", "```yaml", yaml_entry(name, report, folder), "```"]
    return "\n".join(parts) + "\n"


def yaml_entry(name: str, report: Report, folder: str) -> str:
    """Return the part of a configuration that names the prepared files, for a `folder` below `env.cache_root`."""

    def path(below: str) -> str:
        text = f"{folder}/{below}"
        return text if re.fullmatch(r"[\w./-]+", text) else json.dumps(text, ensure_ascii=False)

    splits = []
    for split in SPLITS:
        if any(image.split == split for image in report.kept):
            truth = "" if split == "train" else f", ground_truth: {path(f'annotations/{split}_gt.json')}"
            splits.append(f"        {split}: {{storage: {path(f'annotations/{split}.json')}{truth}}}")
    return _ENTRY.format(name=name, images=path("images"), splits="\n".join(splits)).rstrip("\n")


def _counts(name: str, report: Report) -> list[str]:
    published = PUBLISHED.get(name)
    extra = (" published images |", "---|") if published else ("", "")
    rows = [
        f"| split | images |{extra[0]} captions | distinct captions | captions an image |",
        f"|---|---|{extra[1]}---|---|---|",
    ]
    for split in (*SPLITS, "all"):
        images = [image for image in report.kept if split in (image.split, "all")]
        captions = [caption for image in images for caption in image.captions]
        numbers = Counter(len(image.captions) for image in images)
        spread = ", ".join(f"{number} × {count}" for count, number in sorted(numbers.items(), reverse=True))
        wanted = ""
        if published:
            wanted = f" {sum(published.counts.values()) if split == 'all' else published.counts[split]} |"
        rows.append(
            f"| {split} | {len(images)} |{wanted} {len(captions)} | {len(set(captions))} | {spread} |"
        )
    return [*rows, "\n(“2100 × 5”: 2,100 images have 5 captions each.)"]
