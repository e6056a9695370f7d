"""Images of every container, depth, colour, layout and compression open to the pixels that an independent reader gives.

A seeded walk over the cells of `formats.py`; each file is opened from a path, under a name that lies, and from bytes,
as shards hold it. Then it is cut off or overwritten: it opens to the same pixels, or one line says why it does not.
"""

from __future__ import annotations

import random
import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bita.datasets.shards import ShardDataset, ShardRecord, write_shards
from bita.errors import UserError
from bita.processors.rgb import ImageOpener, open_rgb
from tests.processors.formats import OTHER, PNG, SUFFIXES, make
from tests.processors.pictures import Made
from tests.processors.tiffs import TIFF

HANGS_AFTER = 60


@pytest.fixture
def alarm() -> Iterator[None]:
    """A file that takes a minute is one that hangs, and fails the test, past every `except Exception` on the way."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"a file took {HANGS_AFTER} seconds"))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def opened(content: bytes, where: str) -> np.ndarray | None:
    """The pixels of a file's bytes, or None with an error of one line; anything else that is raised is a fault."""
    try:
        return np.asarray(ImageOpener().decode(content, where))
    except UserError as error:
        message = str(error)
    assert message.startswith(f"{where}: ")
    assert "\n" not in message
    return None


def check(made: Made, pixels: np.ndarray | None, seed: int) -> None:
    assert pixels is not None, f"{seed}: does not open: {made.cell}"
    assert pixels.shape == made.pixels.shape, f"{seed}: {made.cell}"
    difference = np.abs(pixels.astype(int) - made.pixels).max()
    assert difference <= made.tolerance, f"{seed}: {difference} off: {made.cell}"


def walk(folder: Path, seeds: range) -> dict[str, set[Any]]:
    """Make, open and damage a file a seed; returns the values of each factor that were met."""
    met: dict[str, set[Any]] = defaultdict(set)
    for seed in seeds:
        signal.alarm(HANGS_AFTER)
        rng = random.Random(seed)
        made = make(rng)
        for factor, value in made.cell.items():
            met[factor].add(value)
        path = folder / f"file{rng.choice(SUFFIXES)}"
        path.write_bytes(made.content)
        check(made, np.asarray(open_rgb(path)), seed)
        check(made, opened(made.content, "record"), seed)
        path.unlink()
        cut = opened(made.content[: rng.randrange(len(made.content))], "cut")
        if cut is not None:
            check(made, cut, seed)
        garbage = bytearray(made.content)
        for _ in range(rng.randint(1, 8)):
            garbage[rng.randrange(min(len(garbage), rng.choice([64, 1024, 10**6])))] = rng.randrange(256)
        opened(bytes(garbage), "garbage")
        opened(rng.randbytes(rng.randint(0, 300)), "noise")
    return met


@pytest.mark.filterwarnings("ignore")
def test_a_walk_over_the_cells(tmp_path: Path, alarm: None) -> None:
    met = walk(tmp_path, range(400))
    assert met["orientation"] == set(range(1, 9))
    assert met["depth"] >= {"u1", "u2", "f4", 1, 2, 4, 8, 16}
    assert met["compression"] >= {"none", "lzw", "deflate", "packbits", "zstd", "jpeg"}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_long_walk_over_the_cells(tmp_path: Path, alarm: None) -> None:
    met = walk(tmp_path, range(1000, 6000))
    for table in (TIFF, PNG, OTHER):
        for factor, values in table.items():
            assert met[factor] >= set(values), factor


@pytest.mark.filterwarnings("ignore")
def test_shards_give_what_folders_give(tmp_path: Path) -> None:
    """The same files in a shard, named wrongly, with bands in an order of one's own."""
    files = [
        made for made in (make(random.Random(seed)) for seed in range(40)) if made.cell["kind"] != "grey"
    ]
    records = [ShardRecord(f"{n:03}", ".jpg", made.content, ("a field",), n) for n, made in enumerate(files)]
    index = write_shards(records, tmp_path, "train", 7)
    dataset = ShardDataset("toy", "train", index, None)  # type: ignore[arg-type]
    for number, made in enumerate(files):
        image, _, image_id = dataset.drawn(number, torch.Generator().manual_seed(0))
        assert image_id == number
        check(made, np.asarray(image), number)
