"""Compare this package with other ways to do the same, one row of benchmarks/speed.md at a time.

    python scripts/benchmarks/benchmark.py contrast
    python scripts/benchmarks/benchmark.py captioning --rounds 9 --json captioning.json
    python scripts/benchmarks/benchmark.py table OUT/*.json         # one table of what --json wrote

Both sides do the same work, on the same weights and images, in turn in this process; that their results agree is
asserted first. What is printed: seconds of each, and the median ratio over the rounds with its least and highest value.
With one thread (OMP_NUM_THREADS=1) CPU time is counted, so that a busy machine will do. `--small` goes through a row
in seconds; its figures mean nothing.

scripts/benchmarks/speed.sh measures all rows.
"""

from __future__ import annotations

import importlib
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bita.commands import at_least, command_line, program
from bita.machine import start_program

ROWS = {
    "input": ("inputs", "host time of a training pair, against a plain pipeline of PIL and torchvision"),
    "epoch": ("inputs", "stage 1 with a very small model, against the same pipeline with workers"),
    "contrast": ("arithmetic", "contrastive loss and its gradient, against the broadcast form"),
    "grouped": (
        "arithmetic",
        "a stage-2 step with an image's captions in one sequence, against separate rows",
    ),
    "encoder": (
        "arithmetic",
        "EfficientNet-Lite0's forward pass with memory kept, against the C library's way",
    ),
    "captioning": ("captioning", "beams after a prefix, against transformers, and the share of the floor"),
    "features": ("programs", "fine-tuning with the frozen encoder's tokens cached, against not"),
    "files": ("programs", "captioning of files, against the model alone on tensors in memory"),
    "busy": ("programs", "a stage-1 epoch beside two programs that keep both cores busy, against quiet"),
    "quickstart": ("programs", "the whole quickstart, against the state before"),
    "scoring": ("scoring", "a validation's scores, second time, against pycocoevalcap"),
    "search": ("search", "100,000 images and a million by a text, against the same sums in numpy"),
    "growth": ("growth", "cost of a sample and memory as images, batch, beams, length and processes grow"),
}
"""Name of a row → the module that has a function of that name, and what it compares."""


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, report; returns the exit code."""
    parser = command_line(__doc__)
    commands = parser.add_subparsers(dest="row", required=True, metavar="ROW")
    for name, (_, says) in ROWS.items():
        row = commands.add_parser(name, help=says, description=says)
        row.add_argument("--rounds", type=at_least(1), default=5, help="rounds counted (%(default)s)")
        row.add_argument("--small", action="store_true", help="small sizes: try it out")
        row.add_argument("--run", type=Path, metavar="FOLDER", help="a trained run, for `files`")
        row.add_argument("--data", type=Path, metavar="FILE", help="dataset as published, for `scoring`")
        row.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
        row.add_argument("--plot", type=Path, metavar="FILE", help="draw here, for `growth`")
    together = commands.add_parser("table", help="one table of what --json wrote")
    together.add_argument("files", type=Path, nargs="+", metavar="FILE")
    args = parser.parse_args(arguments)
    if args.row == "table":
        print(report(args.files))
        return 0
    if args.row == "files":
        start_program()  # both sides as caption.py is started; other rows' opponents know nothing of it
    from turns import as_json, facts, table

    measure = getattr(importlib.import_module(ROWS[args.row][0]), args.row)
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(args, Path(scratch))
    words = sys.argv[1:] if arguments is None else arguments
    found = facts(shlex.join(["python", "scripts/benchmarks/benchmark.py", *words]))
    print(f"{said(found)}\n\n{table(rows)}")
    if args.json is not None:
        content = json.dumps(found | {"rows": as_json(rows)}, indent=1)
        args.json.write_text(content + "\n", encoding="utf-8")
    return 0


def said(found: dict[str, object]) -> str:
    """Return what `facts` found, in a line."""
    return f"`{found['command']}`: {', '.join(f'{k} {v}' for k, v in found.items() if k != 'command')}."


def report(files: Sequence[Path]) -> str:
    """Return one table of several rows' files, and below it the command and the machine of each."""
    from turns import from_json, table

    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    rows = [row for content in found for row in from_json(content.pop("rows"))]
    return "\n".join([table(rows), "", *(f"- {said(content)}" for content in found)])


if __name__ == "__main__":
    sys.exit(main())
