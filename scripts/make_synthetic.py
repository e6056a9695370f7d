"""Draw the synthetic dataset: ``python scripts/make_synthetic.py OUT [--train 2000 …]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bita.datasets.synthetic import generate
from bita.errors import UserError


def main() -> int:
    """Parse and draw; 0, or the exit code of the mistake."""
    parser = argparse.ArgumentParser(description="Draw the synthetic dataset of aerial scenes.")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--train", type=int, default=2000, help="training images (%(default)s)")
    parser.add_argument("--val", type=int, default=200, help="validation images (%(default)s)")
    parser.add_argument("--test", type=int, default=200, help="test images (%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="(%(default)s)")
    args = parser.parse_args()
    try:
        generate(args.out, train=args.train, val=args.val, test=args.test, size=args.size, seed=args.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
