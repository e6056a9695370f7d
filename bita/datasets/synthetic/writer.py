"""Write a whole synthetic dataset in the prepared layout."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bita.datasets.synthetic.captions import five_captions
from bita.datasets.synthetic.scenes import SCENES, draw_scene
from bita.errors import UserError

JPEG_QUALITY = 93
SMALLEST, LARGEST = 64, 256


def generate(out: Path, *, train: int, val: int, test: int, size: int = 128, seed: int = 42) -> None:
    """Draw a dataset: `out/annotations`, `out/images`, `out/facts.json`; the same bytes for the same arguments.

    It is written beside `out` and renamed when complete, so that `out` is whole or absent.

    Args:
        out: folder to make; must not exist, or be empty.
        train: images of the training split; likewise `val` and `test`.
        val: see `train`.
        test: see `train`.
        size: side of the pictures in pixels, 64 to 256.
        seed: another seed gives other pictures; image i of a split does not depend on how many there are.

    Raises:
        UserError: a size or number out of range, or `out` holds something already.
    """
    counts = {"train": train, "val": val, "test": test}
    if not SMALLEST <= size <= LARGEST:
        raise UserError(f"synthetic dataset: size {size} is not between {SMALLEST} and {LARGEST} pixels")
    for split, number in counts.items():
        if number < 1:
            raise UserError(
                f"synthetic dataset: {split} is {number}, but every split needs at least one image"
            )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already holds something: remove it, or choose another folder for the dataset")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = out.with_name(f".{out.name}.{os.getpid()}")
        work.mkdir()
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); choose another folder") from error
    try:
        _write(work, counts, size, seed)
        work.replace(out)
    except OSError as error:
        raise UserError(f"{out}: the synthetic dataset cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(folder: Path, counts: dict[str, int], size: int, seed: int) -> None:
    (folder / "annotations").mkdir()
    (folder / "images").mkdir()
    facts_of: dict[int, dict[str, Any]] = {}
    image_id = 0
    progress = _Progress(sum(counts.values()))
    for split, number in counts.items():
        records: list[dict[str, Any]] = []
        for index, kind in enumerate(_kinds(f"{seed} {split}", number)):
            key = f"{seed} {split} {index}"
            picture, facts = draw_scene(kind, key, size)
            name = f"{split}_{index:05d}.jpg"
            picture.save(folder / "images" / name, quality=JPEG_QUALITY, subsampling=0)
            facts_of[image_id] = asdict(facts)
            captions = five_captions(facts, key)
            records += [{"image": name, "caption": caption, "image_id": image_id} for caption in captions]
            image_id += 1
            progress.step()
        _save(folder / "annotations" / f"{split}.json", records)
        if split != "train":
            _save(folder / "annotations" / f"{split}_gt.json", _coco(records))
    _save(folder / "facts.json", facts_of)


def _kinds(seed: str, number: int) -> Iterator[str]:
    """Kinds in random order, each as often as the others in every round."""
    rng = random.Random(f"{seed} kinds")
    while number > 0:
        for kind in rng.sample(list(SCENES), len(SCENES))[:number]:
            yield kind
            number -= 1


def _coco(records: list[dict[str, Any]]) -> dict[str, Any]:
    ids = dict.fromkeys(record["image_id"] for record in records)
    return {
        "images": [{"id": image_id} for image_id in ids],
        "annotations": [
            {"id": k, "image_id": record["image_id"], "caption": record["caption"]}
            for k, record in enumerate(records)
        ],
    }


def _save(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")


class _Progress:
    """One line on the terminal, or one at the end where there is none."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()

    def step(self) -> None:
        self.done += 1
        live = sys.stderr.isatty()
        if self.done == self.total or (live and self.done % 50 == 0):
            rate = self.done / max(time.monotonic() - self.start, 1e-6)
            line = f"synthetic scenes: {self.done}/{self.total}, {rate:.0f} images/s"
            print(
                f"\r{line}" if live else line,
                end="\n" if self.done == self.total else "",
                file=sys.stderr,
                flush=True,
            )
