"""Prepare a dataset: published files (a folder or an archive) to annotation files, ground truth and a card.

    bita-prepare ucm_caption   SOURCE data/ucm      (or: python -m bita.prepare …)
    bita-prepare rsicd_caption SOURCE data/rsicd
    bita-prepare nwpu_caption  SOURCE data/nwpu

Anything else by a generic form, files and folders below SOURCE; splits are declared, or drawn where --draw asks for it:

    bita-prepare NAME SOURCE OUT --form coco --annotations train=a.json test=b.json --images pictures
    bita-prepare NAME SOURCE OUT --form karpathy --annotations dataset.json --images pictures
    bita-prepare NAME SOURCE OUT --form csv --annotations all.csv --columns image=file caption=text
    bita-prepare NAME SOURCE OUT --form jsonl --annotations train=a.jsonl val=b.jsonl
    bita-prepare NAME SOURCE OUT --form text     (train/x.jpg + train/x.txt, one caption a line)
    bita-prepare NAME SOURCE OUT --form auto --draw val=0.15 test=0.15     (one .csv, .jsonl or .json, or x.jpg + x.txt;
                                                                 drawn where no column and no folders declare splits)

What cannot be used is left out and listed with its reason; with --strict that ends in exit code 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bita.commands import command_line, program
from bita.errors import UserError
from bita.files import user_path
from bita.prepare.card import Report
from bita.prepare.forms import AUTO, COLUMNS, FORMS, generic_source
from bita.prepare.prepare import Source, prepare, published_source
from bita.prepare.sources import PUBLISHED, SPLITS


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, prepare, report; returns the exit code."""
    options = parse(arguments)
    report = prepare(
        open_data(options),
        options.out,
        copy_images=options.copy_images,
        overwrite=options.overwrite,
        every_split=options.every_split,
    )
    show(report, options.out)
    return 1 if options.strict and report.left_out else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line(__doc__)
    parser.add_argument("name", help=f"a published dataset ({', '.join(PUBLISHED)}), or any name with --form")
    parser.add_argument("source", type=user_path, help="folder or archive with the published files")
    parser.add_argument("out", type=user_path, help="folder of the prepared dataset")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if anything was left out")
    parser.add_argument(
        "--copy-images", action="store_true", help="copy the images instead of linking to them"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what an earlier run wrote differently"
    )
    parser.add_argument(
        "--every-split",
        action="store_true",
        help="refuse a source without usable images for train, val or test",
    )
    form = parser.add_argument_group("generic forms")
    form.add_argument("--form", choices=(*FORMS, AUTO), help="what SOURCE holds")
    form.add_argument("--annotations", nargs="+", default=[], metavar="[SPLIT=]FILE", help="annotation files")
    form.add_argument("--images", default="", metavar="FOLDER", help="image folder (default: SOURCE)")
    form.add_argument(
        "--columns", nargs="+", default=[], metavar="KEY=COLUMN", help="columns for image, caption, split"
    )
    form.add_argument(
        "--draw",
        nargs="+",
        default=[],
        metavar="SPLIT=SHARE",
        help="draw val and test, e.g. val=0.15 test=0.15; with --form auto where nothing declares splits",
    )
    return parser.parse_args(arguments)


def shares(entries: Sequence[str]) -> dict[str, float] | None:
    """Return what `--draw` asks for; None where it asks for nothing.

    Raises:
        UserError: another split than val and test, a share that is none, or nothing left for training.
    """
    drawn: dict[str, float] = {}
    for entry in entries:
        split, _, share = entry.partition("=")
        try:
            drawn[split] = float(share)
        except ValueError:
            raise UserError(f"--draw {entry}: wanted SPLIT=SHARE, such as test=0.15") from None
        if split not in SPLITS[1:] or not 0 <= drawn[split] < 1 or sum(drawn.values()) >= 1:
            raise UserError(
                f"--draw {entry}: wanted val and test, together less than 1; the rest is for training"
            )
    return drawn or None


def open_data(args: argparse.Namespace) -> Source:
    """Open the published dataset or the generic form that the command line names.

    Raises:
        UserError: a name or a column is unknown, or the source is not as its form wants.
    """
    if args.form is None:
        if args.name not in PUBLISHED:
            known = ", ".join(PUBLISHED)
            raise UserError(f"{args.name}: none of {known}; other data needs --form ({', '.join(FORMS)})")
        return published_source(args.name, args.source, args.out)
    columns = dict(entry.partition("=")[::2] for entry in args.columns)
    unknown = [key for key in columns if key not in COLUMNS]
    if unknown:
        raise UserError(f"--columns {unknown[0]}: wanted KEY=COLUMN with one of {', '.join(COLUMNS)} as KEY")
    return generic_source(
        args.name,
        args.form,
        args.source,
        args.out,
        annotations=args.annotations,
        images=args.images,
        columns=columns,
        draw=shares(args.draw),
    )


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
