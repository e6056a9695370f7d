"""Write a whole synthetic dataset in the prepared layout."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bita.datasets.synthetic.captions import five_captions
from bita.datasets.synthetic.scenes import SCENES, draw_scene
from bita.errors import UserError
from bita.files import exclusive, write_text
from bita.machine import cores

LOG = logging.getLogger(__name__)
GENERATED = "generated.json"
"""File of a synthetic dataset that says what it was generated from."""
JPEG_QUALITY = 93
SMALLEST, LARGEST = 64, 256
MANY = 500
"""Scenes that are worth a process a core."""


def generate_synthetic(out: Path, synthetic: dict[str, Any]) -> None:
    """Generate the synthetic dataset below `out`; of several processes the first does, the others wait."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(out.parent / f".{out.name}.lock"):
        if not (out / "annotations").is_dir():
            LOG.info("generating the synthetic dataset in %s", out)
            generate(out, **synthetic)
            write_text(out / GENERATED, json.dumps(synthetic))


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
        wanted = (
            _Wanted(kind, f"{seed} {split} {index}", size, folder / "images" / f"{split}_{index:05d}.jpg")
            for index, kind in enumerate(_kinds(f"{seed} {split}", number))
        )
        for name, facts, captions in _drawn(wanted, number):
            facts_of[image_id] = facts
            records += [{"image": name, "caption": caption, "image_id": image_id} for caption in captions]
            image_id += 1
            progress.step()
        _save(folder / "annotations" / f"{split}.json", records)
        if split != "train":
            _save(folder / "annotations" / f"{split}_gt.json", _coco(records))
    _save(folder / "facts.json", facts_of)


class _Wanted(NamedTuple):
    """A scene to be drawn."""

    kind: str
    key: str
    size: int
    path: Path


_Drawn = tuple[str, dict[str, Any], list[str]]
"""The file's name, what it shows, and its captions."""


def _draw(wanted: _Wanted) -> _Drawn:
    picture, facts = draw_scene(wanted.kind, wanted.key, wanted.size)
    picture.save(wanted.path, quality=JPEG_QUALITY, subsampling=0)
    return wanted.path.name, asdict(facts), five_captions(facts, wanted.key)


def _drawn(wanted: Iterable[_Wanted], number: int) -> Iterator[_Drawn]:
    """Draw scenes, in their order: by a process a core, where they are many and a process can be forked off cheaply."""
    if number < MANY or "torch" in sys.modules or sys.platform != "linux":
        yield from map(_draw, wanted)
        return
    with ProcessPoolExecutor(cores(), multiprocessing.get_context("fork")) as pool:
        yield from pool.map(_draw, wanted, chunksize=50)


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
