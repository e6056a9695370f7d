"""The row `search` of benchmark.py: the index of many images searched by a text."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from turns import Row, compare

from bita.errors import UserError
from bita.inference.index import Entry, VectorIndex

CASES = ((100_000, 32, 256), (1_000_000, 8, 128))
"""Images, and their vectors as the published model and the small recipe have them: 1.6 and 2 GB."""
TOP = 20
"""Results wanted."""
PART = 2000


def search(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """Time the search in an index on the disk (in memory after the first time), once both sides find the same."""
    cases = [(4000, 32, 256), (8000, 8, 128)] if args.small else CASES
    return [row for case in cases for row in of_an_index(*case, args.rounds, scratch)]


def of_an_index(count: int, queries: int, width: int, rounds: int, scratch: Path) -> list[Row]:
    """Write an index of random vectors, search it, and remove it."""
    index = VectorIndex(scratch / "index", "random", queries, width)
    generator = torch.Generator().manual_seed(0)
    with index.writing():
        for start in range(0, count, PART):
            rows = F.normalize(torch.randn(PART, queries, width, generator=generator), dim=-1)
            index.add([Entry(str(start + row), "", "", row) for row in range(PART)], rows)
    text = F.normalize(torch.randn(1, width, generator=generator), dim=-1)

    def ours() -> list[tuple[str, float]]:
        return index.search(text, TOP)[0]

    def plain(kind: type[np.floating]) -> list[tuple[str, float]]:
        vectors, wanted = index.vectors(), text[0].numpy().astype(kind)
        parts = [vectors[start : start + 256].astype(kind) @ wanted for start in range(0, count, 256)]
        scores = np.concatenate(parts).max(axis=1)
        return [(str(row), float(scores[row])) for row in np.argsort(-scores, kind="stable")[:TOP]]

    found, exact = ours(), plain(np.float64)
    if [key for key, _ in found] != [key for key, _ in exact] or not np.allclose(
        [score for _, score in found], [score for _, score in exact], rtol=0, atol=1e-12
    ):
        raise UserError("search: the index finds others than all sums in double precision")
    compared = compare(
        f"search, {count:,} images of {queries} vectors",
        [ours, lambda: plain(np.float32)],
        against="numpy, single precision",
        unit="search",
        units=1,
        rounds=rounds,
        same=f"the {TOP} best, as in double precision",
    )
    shutil.rmtree(index.folder)
    return compared
