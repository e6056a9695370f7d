"""Prepare a dataset: published files (a folder or an archive) to annotation files, ground truth and a card.

    python scripts/prepare_data.py ucm_caption   SOURCE data/ucm
    python scripts/prepare_data.py rsicd_caption SOURCE data/rsicd
    python scripts/prepare_data.py nwpu_caption  SOURCE data/nwpu

What cannot be used is left out and listed with its reason; with --strict that ends in exit code 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bita.datasets.prepare import Report, prepare, published_source
from bita.datasets.sources import PUBLISHED, SPLITS
from bita.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, prepare, report; returns the exit code."""
    options = parse(arguments)
    try:
        source = published_source(options.name, options.source, options.out)
        report = prepare(source, options.out, copy_images=options.copy_images, overwrite=options.overwrite)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    show(report, options.out)
    return 1 if options.strict and report.left_out else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(PUBLISHED), help="which published dataset this is")
    parser.add_argument("source", type=Path, help="folder or archive with the published files")
    parser.add_argument("out", type=Path, help="folder of the prepared dataset")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if anything was left out")
    parser.add_argument(
        "--copy-images", action="store_true", help="copy the images instead of linking to them"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what an earlier run wrote differently"
    )
    return parser.parse_args(arguments)


def show(report: Report, out: Path) -> None:
    """Print what was left out, what is odd, and the counts."""
    for what, reason in report.left_out:
        print(f"left out: {what}: {reason}")
    for note in report.notes:
        print(f"note: {note}")
    for split in SPLITS:
        images = [image for image in report.kept if image.split == split]
        print(f"{split:5} {len(images):6} images {sum(len(image.captions) for image in images):7} captions")
    done = f"wrote {', '.join(report.written)}" if report.written else "verified: nothing had to be written"
    print(f"{out}: {done}; {len(report.left_out)} left out")


if __name__ == "__main__":
    sys.exit(main())
