"""Measure again what a file of benchmarks/ records, and say how far it is off; reproduce.sh runs this.

A file's head lists its measurements:

    - what: three stages
      command: bash scripts/quickstart.sh "$OUT"      # in a shell, from the repository, $OUT an empty folder
      result: scores.json                             # below $OUT: JSON, or Markdown with a table
      commit: 13905a6                                 # of the code that was measured, and when
      date: 2026-11-24
      machine: 2 cores of an AMD EPYC, AVX512         # another vector width rounds otherwise: other scores
      values: {test.CIDEr: 4.437}                     # of JSON; a Markdown result is compared with the file's own table
      within: {seconds: 0.5}                          # relative, by name or column; else three digits after the point

Exit code 1 if anything is off by more.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bita.commands import command_line, program
from bita.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
LAST_DIGIT = 0.0005
"""What a figure may always be off: half a unit of the third digit after the point."""
Figures = dict[str, float]
"""Name of a figure → its value."""


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, compare, print; returns the exit code."""
    parser = command_line(__doc__)
    parser.add_argument("name", help="file of benchmarks/, without its ending")
    parser.add_argument("--only", metavar="WHAT", help="only the measurement of this name")
    parser.add_argument("--write", action="store_true", help="record what was measured, with commit and date")
    args = parser.parse_args(arguments)
    path = ROOT / f"benchmarks/{args.name}.md"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.md")))
        raise UserError(f"{args.name}: no such file of benchmarks/; there are {known}")
    commit = clean_commit() if args.write else ""
    head, body = read(path)
    bad = 0
    for entry in head:
        if args.only not in (None, entry["what"]):
            continue
        if not entry.get("command"):
            print(f"{entry['what']}: measured by hand at {entry['commit']}, {entry['date']}; nothing to run")
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = measure(entry, Path(folder))
        recorded = entry["values"] if "values" in entry else table(body, found) if entry["commit"] else {}
        bad += compare(entry, recorded, figures(found))
        if args.write:
            entry |= {"commit": commit, "date": datetime.date.today(), "machine": machine()}
            if "values" in entry:
                entry["values"] = {name: round(figures(found)[name], 3) for name in entry["values"]}
            else:
                body = with_table(body, found)
            write(path, head, body)
    return 1 if bad else 0


def read(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Return the measurements in a file's head, and the text below it."""
    _, head, body = path.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head)["measurements"], body


class _Dumper(yaml.SafeDumper):
    """Writes commands of several lines as they are read."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def machine() -> str:
    """Return what figures depend on: the cores, their kind, the width of their vectors; the GPU, where there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    names = re.search(r"model name\s*: (.+)", info)
    kind = names[1].split("@")[0].strip() if names else platform.processor()
    return f"{os.cpu_count()} cores of an {kind}, {torch.backends.cpu.get_cpu_capability()}"


def write(path: Path, head: list[dict[str, Any]], body: str) -> None:
    """Write a file of benchmarks/."""
    text = yaml.dump({"measurements": head}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=118)
    path.write_text(f"---\n{text}---\n{body}", encoding="utf-8")


def clean_commit() -> str:
    """Return the commit of the code as it is.

    Raises:
        UserError: files differ from it.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    if git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks"):
        raise UserError("--write: there are changes that no commit has; commit them first")
    return git("rev-parse", "--short", "HEAD")


def measure(entry: Mapping[str, Any], out: Path) -> str:
    """Run a measurement's command; the text of its result."""
    print(f"{entry['what']}: {entry['command']}", flush=True)
    environment = os.environ | {"OUT": str(out), "PYTHONPATH": str(ROOT)}
    code = subprocess.run(["bash", "-euc", entry["command"]], cwd=ROOT, env=environment).returncode
    if code or not (out / entry["result"]).is_file():
        raise UserError(f"{entry['what']}: exit code {code}; the command wrote no {entry['result']}")
    return (out / entry["result"]).read_text(encoding="utf-8")


def figures(text: str) -> Figures:
    """Return the figures of a result: JSON by dotted names, Markdown by row and column."""
    if not text.lstrip().startswith("{"):
        return rows(lines_of_tables(text))
    found: Figures = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, int | float):
            found[name] = value
        elif isinstance(value, dict | list):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                walk(item, f"{name}.{key}" if name else str(key))

    walk(json.loads(text), "")
    return found


def lines_of_tables(text: str) -> list[list[str]]:
    """Cells of every line of every table."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def rows(lines: Sequence[Sequence[str]]) -> Figures:
    """The figures of tables, by row and column: a row is known by its first cell and others that hold no digit."""
    found: Figures = {}
    columns: Sequence[str] = ()
    for number, cells in enumerate(lines):
        if number + 1 < len(lines) and set("".join(lines[number + 1])) <= set("-: "):
            columns = cells
        elif not set("".join(cells)) <= set("-: "):
            row = ", ".join([cells[0], *(cell for cell in cells[1:] if not re.search(r"\d", cell) and cell)])
            for column, cell in zip(columns[1:], cells[1:], strict=True):
                for place, value in enumerate(NUMBER.findall(cell)):
                    found[f"{row}: {column}{place or ''}"] = float(value.replace(",", ""))
    return found


def block(text: str, columns: Sequence[str]) -> tuple[int, int]:
    """First line, and line after the last, of the table with these columns."""
    lines = text.splitlines()
    for start, line in enumerate(lines):
        if line.startswith("|") and lines_of_tables(line) == [list(columns)]:
            length = next((k for k, other in enumerate(lines[start:]) if not other.startswith("|")), None)
            return start, len(lines) if length is None else start + length
    raise UserError(f"no table with the columns {', '.join(columns)}")


def table(body: str, found: str) -> Figures:
    """Return the figures that a file records in the table that a result has anew."""
    start, end = block(body, lines_of_tables(found)[0])
    return rows(lines_of_tables("\n".join(body.splitlines()[start:end])))


def with_table(body: str, found: str) -> str:
    """Return a file's text with a result's table in place of its own."""
    columns = lines_of_tables(found)[0]
    (start, end), (first, last) = block(body, columns), block(found, columns)
    lines = body.splitlines()
    return "\n".join([*lines[:start], *found.splitlines()[first:last], *lines[end:]]) + "\n"


def compare(entry: Mapping[str, Any], recorded: Figures, now: Figures) -> int:
    """Print how far each figure is off; how many are off by more than is allowed."""
    bad = 0
    if entry.get("machine", machine()) != machine():
        print(f"note: recorded on {entry['machine']}; this is {machine()}, which may round otherwise")
    within = entry.get("within", {})
    print(f"{'':60} {'recorded':>12} {'now':>12} {'off':>8}   recorded at {entry['commit']}, {entry['date']}")
    for name, old in recorded.items():
        new = now.get(name, math.nan)
        share = max(
            (within[key] for key in within if re.search(rf"(^|[ .]){re.escape(key)}[.\d]*$", name)), default=0
        )
        wrong = not abs(new - old) <= max(share * abs(old), LAST_DIGIT)
        bad += wrong
        off = f"{(new - old) / abs(old):+.1%}" if old else f"{new - old:+g}"
        print(f"{name[:60]:60} {old:>12g} {new:>12.6g} {off:>8}{'   MORE THAN ALLOWED' if wrong else ''}")
    return bad


if __name__ == "__main__":
    sys.exit(main())
