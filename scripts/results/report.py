"""The end of a pipeline: scores beside their floors and ceilings, and a page of images and captions.

    .venv/bin/python scripts/results/report.py RUN OUT [--seconds N]

RUN is a caption run whose test split was scored; OUT gets `scores.json` and `report.html`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bita.errors import program
from bita.report import report


@program
def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a caption run's folder, or its output folder (then the latest)")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, help="what the road took, to be noted")
    args = parser.parse_args()
    report(args.run, args.out, args.seconds)
    print(f"look at {args.out / 'report.html'}; scores in {args.out / 'scores.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
