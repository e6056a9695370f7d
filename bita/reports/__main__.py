"""The command `bita-report`, which a checkout has as scripts/report.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bita.commands import command_line, program
from bita.errors import UserError
from bita.files import user_path

DESCRIPTION = """Write a run's report, or two runs' side by side: one page that needs nothing else.

bita-report output/ucm_tiny/caption
bita-report output/a/caption output/b/caption --out report.html

The captions are those that training or evaluation left in the run's results/.
A checkout has it as scripts/report.py."""


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = command_line(DESCRIPTION)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, or its output folder (then the latest)"
    )
    parser.add_argument(
        "--out", type=user_path, metavar="FILE", help="default: report.html in the first run's folder"
    )
    parser.add_argument(
        "--split", metavar="NAME", help="which of its results (default: the first, such as test)"
    )
    parser.add_argument(
        "--data", type=user_path, metavar="DIR", help="in the place of the run's env.cache_root"
    )
    parser.add_argument("--classes", type=user_path, metavar="FILE", help="JSON {image id: class}")
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="score captions that need no model, too; opens all training images",
    )
    parser.add_argument(
        "--model", action="store_true", help="load the model, too: where it looked, how sure it is"
    )
    args = parser.parse_args(arguments)
    if len(args.runs) > 2:
        raise UserError(
            f"{len(args.runs)} runs: a report is of one, or of two side by side; see scripts/compare_runs.py"
        )
    from bita.reports.report import findings, write_report

    found = findings(args.runs, name=args.split, data=args.data, baselines=args.baselines, model=args.model)
    path: Path = args.out or found.runs[0].folder / "report.html"
    write_report(path, found, args.classes and found.split.classes(args.classes))
    print(f"look at {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
