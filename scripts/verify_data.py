"""Verify prepared datasets: counts, images, ids, overlap between what is trained and evaluated on, captions.

    python scripts/verify_data.py ucm_caption=data/ucm
    python scripts/verify_data.py ucm_caption=data/ucm rsicd_caption=data/rsicd --near 20 --json findings.json

Several datasets are also held against each other. Exit code 1 if there is a problem, 0 if there are notes only.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bita.commands import at_least, command_line, program
from bita.errors import UserError
from bita.files import user_path, write_json
from bita.prepare.verify import Verification, verify


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, verify, report; returns the exit code."""
    parser = command_line(__doc__)
    parser.add_argument("datasets", nargs="+", metavar="[NAME=]FOLDER", help="prepared folders")
    parser.add_argument(
        "--near",
        type=at_least(0),
        metavar="BITS",
        help="also find near copies: hashes that differ in at most BITS of 256",
    )
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write all findings to FILE")
    args = parser.parse_args(arguments)
    result = verify(named_folders(args.datasets), args.near)
    show(result)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, result.data)
    return 1 if result.problems else 0


def named_folders(entries: Sequence[str]) -> dict[str, Path]:
    """Return the folders by name; a folder without a name takes its own."""
    folders: dict[str, Path] = {}
    for entry in entries:
        name, equals, folder = entry.partition("=")
        path = user_path(folder if equals else entry)
        name = name if equals else path.resolve().name
        if name in folders:
            raise UserError(f"{entry}: {name} is named twice; give one of them another NAME=")
        folders[name] = path
    return folders


def show(result: Verification) -> None:
    """Print the counts, the notes and the problems."""
    print(f"{'dataset':16} {'split':6} {'images':>7} {'published':>10} {'captions':>9}")
    print("\n".join(result.tables))
    for note in result.notes:
        print(f"note: {note}")
    for problem in result.problems:
        print(f"problem: {problem}")
    print(f"{len(result.problems)} problems, {len(result.notes)} notes")


if __name__ == "__main__":
    sys.exit(main())
