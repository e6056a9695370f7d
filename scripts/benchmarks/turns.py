"""What the comparisons share: sides that run in turn, ratios with their spread, a table, the machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from reproduce import machine
from torch import Tensor

from bita.errors import UserError

COLUMNS = ("row", "against", "a", "ours, ms", "theirs, ms", "ratio", "wanted", "the same in both")
Spread = tuple[float, float, float]
"""Median, least and highest over the rounds."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: the row and its case; no other line has the same.
        against: the other side.
        unit: what the times are of.
        ours: seconds a unit, the median over the rounds; and `theirs`.
        ratio: theirs / ours, round by round.
        wanted: the least ratio that is wanted, if any is.
        same: what was found equal before anything was timed.
    """

    what: str
    against: str
    unit: str
    ours: float
    theirs: float
    ratio: Spread
    wanted: float | None
    same: str

    def line(self) -> str:
        """Return its line of Markdown."""
        middle, least, highest = self.ratio
        cells = (
            self.what,
            self.against,
            self.unit,
            f"{1000 * self.ours:.4g}",
            f"{1000 * self.theirs:.4g}",
            f"{middle:.2f} ({least:.2f} to {highest:.2f})",
            "" if self.wanted is None else f"{self.wanted:g}",
            self.same,
        )
        return f"| {' | '.join(cells)} |"


def compare(
    what: str,
    sides: Sequence[Callable[[], Any]],
    *,
    against: str | Sequence[str],
    unit: str,
    units: float,
    rounds: int,
    same: str,
    wanted: float | Sequence[float | None] | None = None,
) -> list[Row]:
    """Time our side and others in turn, once for nothing and then round by round; a row for each of the others.

    Args:
        what: begins the rows' names.
        sides: ours first.
        against: name of the other side, or of each.
        unit: what a time is of.
        units: how many of these a run does.
        rounds: how many are counted.
        same: what was found equal; the caller has asserted it.
        wanted: least ratio, or that of each.
    """
    in_turn(sides)
    times = [in_turn(sides) for _ in range(rounds)]
    names = [against] if isinstance(against, str) else against
    least = [wanted] * len(names) if not isinstance(wanted, Sequence) else wanted
    return [
        row(
            what if len(names) == 1 else f"{what}, {name}",
            [round_[0] / units for round_ in times],
            [round_[place] / units for round_ in times],
            against=name,
            unit=unit,
            same=same,
            wanted=want,
        )
        for place, (name, want) in enumerate(zip(names, least, strict=True), start=1)
    ]


def row(
    what: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    against: str,
    unit: str,
    same: str,
    wanted: float | None = None,
) -> Row:
    """Return the row of two sides' seconds a unit, round by round."""
    ratio = spread([their / our for our, their in zip(ours, theirs, strict=True)])
    return Row(what, against, unit, statistics.median(ours), statistics.median(theirs), ratio, wanted, same)


def in_turn(sides: Sequence[Callable[[], Any]]) -> list[float]:
    """Seconds of each side, one after the other."""
    return [seconds(side) for side in sides]


def seconds(run: Callable[[], Any]) -> float:
    """Return how long it takes: with one thread its CPU time, which waits for nobody; else by the clock on the wall."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    return clock() - start


def spread(values: Sequence[float]) -> Spread:
    """Median, least and highest."""
    return statistics.median(values), min(values), max(values)


def same_values(what: str, ours: Tensor, theirs: Tensor, within: float) -> str:
    """Say how far two sides' values lie apart, as a share of the largest.

    Raises:
        UserError: by more than `within`.
    """
    far = float((ours - theirs).detach().abs().max() / theirs.detach().abs().max().clamp_min(1e-30))
    if not far <= within:
        raise UserError(f"{what}: the sides differ by {far:.2g} of the largest value, more than {within:g}")
    return f"{what} within {far:.0e}" if far else f"{what} equal"


def same_lists(what: str, ours: Any, theirs: Any) -> str:
    """Say that two sides gave equal results.

    Raises:
        UserError: they did not.
    """
    if ours != theirs:
        raise UserError(f"{what}: the sides differ")
    return f"{what} equal"


def facts(command: str) -> dict[str, Any]:
    """Return what the figures hold for: machine, threads, versions, load, command."""
    import transformers

    return {
        "command": command,
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "precision": "float32" if not torch.cuda.is_available() else "bfloat16",
        "load at the end": round(os.getloadavg()[0], 1),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
    }


def table(rows: Sequence[Row]) -> str:
    """Return the table of some rows, as Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([*lines, *(one.line() for one in rows)])


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows as plain data, which `from_json` takes."""
    return [asdict(one) for one in rows]


def from_json(rows: Sequence[dict[str, Any]]) -> list[Row]:
    """Take back what `as_json` gave."""
    return [Row(**(one | {"ratio": tuple(one["ratio"])})) for one in rows]
