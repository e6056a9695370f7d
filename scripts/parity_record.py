"""What a parity folder holds, item by item, and what became of each; scripts/parity.py compares."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bita.errors import UserError
from bita.weights.files import read_tensors


@dataclass
class Finding:
    """One item's outcome."""

    agrees: bool
    detail: str = ""


class Record:
    """Everything a parity folder holds, by item, and what became of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items: dict[str, Any] = dict(_leaves("expected.json", _read_json(folder / "expected.json")))
        for name in ("stage1_expected", "stage2_expected"):
            self.items |= {f"{name}/{k}": v for k, v in read_tensors(folder / f"{name}.pt").items()}
        for name in ("stage1_checkpoint", "stage2_checkpoint"):
            self.items |= {f"{name}/{k}": v for k, v in read_tensors(folder / f"{name}.pth").items()}
        self.findings: dict[str, Finding] = {}

    def use(self, name: str) -> Any:
        """Return an item that others are computed from: wrong, it shows in them."""
        if name not in self.items:
            raise UserError(f"{self.folder}: {name} is not in the record")
        self.findings.setdefault(name, Finding(True, "input"))
        return self.items[name]

    def json(self, prefix: str) -> list[str]:
        """Names of the items of expected.json under a prefix, in order."""
        return [
            name for name in self.items if re.match(re.escape(f"expected.json {prefix}") + r"(\.|\[|$)", name)
        ]

    def value(self, path: str) -> Any:
        """`use` of one value of expected.json."""
        return self.use(f"expected.json {path}")

    def texts(self, path: str) -> list[str]:
        """`use` of a list of texts of expected.json."""
        return [str(self.use(name)) for name in self.json(path)]

    def check(self, name: str, agrees: bool, detail: str = "") -> None:
        """Note whether an item agrees; one disagreement is enough."""
        before = self.findings.get(name)
        if before is None or before.agrees:
            self.findings[name] = Finding(agrees, detail)

    def same(self, name: str, ours: Any) -> None:
        """An item that must be equal."""
        theirs = self.use(name)
        equal = torch.equal(theirs, ours) if isinstance(theirs, Tensor) else theirs == ours
        self.check(name, equal, "equal" if equal else f"{_short(theirs)} recorded, {_short(ours)} here")

    def close(self, name: str, ours: Tensor | float, tolerance: float | None = None) -> None:
        """A forward value (or, with a tolerance, a loss) within its bound."""
        theirs = torch.as_tensor(self.use(name))
        ours = torch.as_tensor(ours).detach()
        if theirs.shape != ours.shape:
            self.check(name, False, f"shape {tuple(theirs.shape)} recorded, {tuple(ours.shape)} here")
            return
        bound = 1e-5 * max(1.0, theirs.abs().max().item()) if tolerance is None else tolerance
        self._within(name, (theirs - ours).abs().max().item(), bound)

    def gradient(self, name: str, ours: Tensor | None) -> None:
        """A gradient within its bound."""
        theirs = self.use(name)
        if ours is None or ours.shape != theirs.shape:
            self.check(name, False, "no such gradient here")
            return
        bound = 1e-4 * theirs.abs().max().item() + 1e-7
        self._within(name, (theirs - ours).abs().max().item(), bound)

    def _within(self, name: str, difference: float, bound: float) -> None:
        self.check(name, difference <= bound, f"max|Δ| {difference:.1e}, allowed {bound:.1e}")


def table(record: Record) -> str:
    """Return a line a kind of item, then every disagreement, then the count."""
    good: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for name, finding in record.findings.items():
        kind = re.split(r"[\[]|(?<=grad)/|(?<=checkpoint)/", name)[0]
        total[kind] += 1
        good[kind] += finding.agrees
    lines = [f"{kind:58} {good[kind]:4} of {total[kind]:4}" for kind in sorted(total)]
    lines += [f"DIFFERS {name}: {f.detail}" for name, f in sorted(record.findings.items()) if not f.agrees]
    return "\n".join([*lines, f"{good.total()} of {total.total()} items"])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not readable as JSON ({error}); name a folder like tests/fixtures/parity"
        ) from error


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Values with their paths; a list of numbers is one item."""
    join = " " if path == "expected.json" else "."
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{path}{join}{key}", inner)
    elif isinstance(value, list) and not all(isinstance(x, int | float) for x in value):
        for index, inner in enumerate(value):
            yield from _leaves(f"{path}[{index}]", inner)
    else:
        yield path, value


def _short(value: Any) -> str:
    text = f"tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    return text if len(text) < 80 else text[:77] + "…"
