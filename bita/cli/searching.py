"""`bita-search`: images, or tiles of a scene, by words."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bita.checkpoint import start_with
from bita.commands import at_least, command_line, program
from bita.files import user_path
from bita.packages import BOX

SEARCH = """Find images, or tiles of a scene, by words.

bita-search "two planes beside a terminal" FOLDER --checkpoint output/quickstart/caption
bita-search "two planes beside a terminal" scene.tif --checkpoint RUN --output found.geojson

The vectors of what was seen once are kept in an index (docs/search.md).

A checkout has it as scripts/image_search.py."""


@program
def search(arguments: Sequence[str] | None = None) -> int:
    """The command `bita-search`; its exit code."""
    args = _search_line().parse_args(arguments)
    start_with(args.checkpoint)
    from bita.scenes.search import run as find

    return find(args)


def _search_line() -> argparse.ArgumentParser:
    from bita.scenes.command import add_cut
    from bita.scenes.layers import SUFFIXES

    parser = command_line(SEARCH)
    parser.add_argument("text", help="what to look for")
    parser.add_argument("target", type=user_path, metavar="FOLDER_OR_SCENE")
    parser.add_argument(
        "--checkpoint",
        default=BOX,
        metavar="RUN",
        help="of stage 1, or one that grew from it; what the package brings has none",
    )
    parser.add_argument("--top", type=at_least(1), default=20, help="results (%(default)s)")
    parser.add_argument(
        "--output",
        type=user_path,
        metavar="FILE",
        help=f"a contact sheet: FILE.png; of a scene, polygons: {', '.join(SUFFIXES.values())}",
    )
    parser.add_argument(
        "--index", type=user_path, metavar="FOLDER", help="of the vectors (beside what is searched)"
    )
    parser.add_argument(
        "--batch-size", type=at_least(1), default=32, help="images embedded at a time (%(default)s)"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add_cut(parser.add_argument_group("scenes (docs/scenes.md)"))
    return parser
