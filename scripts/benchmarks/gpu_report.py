"""Put together what the parts of gpu_check.sh have left: report.md, steps.md, results.json. Needs no torch.

    python scripts/benchmarks/gpu_report.py PARTS OUT

PARTS holds NAME.json (of gpu.py), NAME.md (other programs' tables), NAME.log and NAME.status (seconds, exit code).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = (
    "what",
    "model",
    "pairs",
    "ms a step",
    "pairs/s",
    "× reference",
    "× transformers",
    "of the floor",
    "peak GiB",
    "TFLOP a step",
    "MFU",
    "loss",
)
ORDER = ("versions", "stage_2", "captioning", "stage_1", "fine_tuning", "tests", "profile", "saving")


def main(arguments: Sequence[str]) -> int:
    """Read PARTS, write into OUT."""
    parts, out = map(Path, arguments)
    found: dict[str, Any] = {}
    steps = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    sections, states = [], ["| part | seconds | ended |", "|---|---|---|"]
    for name in ORDER:
        status = parts / f"{name}.status"
        if not status.is_file():
            states.append(f"| {name} | | not reached |")
            continue
        seconds, code = status.read_text().split()
        states.append(f"| {name} | {seconds} | {ended(code)} |")
        content = parts / f"{name}.json"
        if content.is_file():
            found[name] = json.loads(content.read_text(encoding="utf-8"))
            steps += [line(row) for row in found[name].get("rows", ())]
            sections += [groups(*item) for item in found[name].get("profiles", {}).items()]
        table = parts / f"{name}.md"
        if table.is_file() and table.stat().st_size:
            sections.append(f"## {name}\n\n{table.read_text(encoding='utf-8').strip()}\n")
        log = (parts / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip()
        if name in ("versions", "tests") or code != "0":
            sections.append(f"## What {name} said\n\n```\n{log[-2500:]}\n```\n")
        found.setdefault(name, {})["seconds"] = float(seconds)
        found[name]["exit code"] = int(code)
    table_of_steps = "\n".join(steps)
    text = ["# What was measured on the GPU\n", table_of_steps, "", *states, "", *sections]
    (out / "report.md").write_text("\n".join(text), encoding="utf-8")
    (out / "steps.md").write_text(table_of_steps + "\n", encoding="utf-8")
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def ended(code: str) -> str:
    """Return in words how a part ended."""
    return {"0": "well", "124": "at its limit", "137": "killed"}.get(code, f"with exit code {code}")


def line(row: dict[str, Any]) -> str:
    """Return a line of the table of steps."""

    def share(key: str) -> str:
        return "" if row.get(key) is None else f"{row[key]:.0%}"

    def ratio(key: str) -> str:
        return "" if row.get(key) is None else f"{row[key]:.2f}"

    loss = row.get("loss")
    cells = (
        row["what"],
        row["model"],
        str(row["pairs"]),
        f"{1000 * row['seconds']:.1f} ({1000 * row['least']:.1f} to {1000 * row['highest']:.1f})",
        f"{row['pairs'] / row['seconds']:.0f}",
        ratio("reference"),
        ratio("transformers"),
        share("floor"),
        f"{row['peak'] / 2**30:.1f}",
        f"{row['operations'] / 1e12:.2f}",
        share("mfu"),
        "" if loss is None else f"{loss[0]:.3f} → {loss[1]:.3f}",
    )
    return f"| {' | '.join(cells)} |"


def groups(what: str, found: dict[str, Any]) -> str:
    """Return the section of a profile."""
    lines = [f"## Profile: {what}\n", "| kernels | ms | launches |", "|---|---|---|"]
    lines += [f"| {name} | {g['ms']:.2f} | {g['launches']:.0f} |" for name, g in found["groups"].items()]
    lines.append(f"| all | {found['ms']:.2f} | {found['launches']:.0f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
