"""The row `search` of benchmark.py: the index of many images searched by a text."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from turns import Row, compare

from bita.errors import UserError
from bita.inference.index import Entry, VectorIndex

QUERIES, WIDTH, TOP = 32, 256, 20
"""As the published model has them; and results wanted."""
PART = 2000


def search(options: argparse.Namespace, scratch: Path) -> list[Row]:
    """Time the search in an index on the disk (in memory after the first time), once both sides find the same."""
    count = 4000 if options.small else 100_000
    index = VectorIndex(scratch / "index", "random", QUERIES, WIDTH)
    generator = torch.Generator().manual_seed(0)
    with index.writing():
        for start in range(0, count, PART):
            rows = F.normalize(torch.randn(PART, QUERIES, WIDTH, generator=generator), dim=-1)
            index.add([Entry(str(start + row), "", "", row) for row in range(PART)], rows)
    text = F.normalize(torch.randn(1, WIDTH, generator=generator), dim=-1)

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
    return compare(
        f"search, {count:,} images of {QUERIES} vectors",
        [ours, lambda: plain(np.float32)],
        against="numpy, single precision",
        unit="search",
        units=1,
        rounds=options.rounds,
        same=f"the {TOP} best, as in double precision",
    )
