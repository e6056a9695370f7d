"""Pack a prepared split into WebDataset shards, or index shards that are there.

    python scripts/make_shards.py pack data/rsicd train data/rsicd_shards --per-shard 2000
    python scripts/make_shards.py index data/rs5m/train.shards.json data/rs5m/*.tar

A dataset entry reads them where a split's storage is an index; the split can be trained on, not evaluated:

    datasets: {rs5m: {build_info: {annotations: {train: {storage: rs5m/train.shards.json}}}}}
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bita.commands import at_least, command_line, program
from bita.errors import UserError
from bita.files import user_path


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, pack or index, report; returns the exit code."""
    options = parse(arguments)
    from bita.datasets.shards import index_shards, prepared_records, read_index, write_shards

    if options.command == "pack":
        records = prepared_records(options.source, options.split)
        index = write_shards(records, options.out, options.split, options.per_shard)
    else:
        outside = [path for path in options.shards if path.resolve().parent != options.index.resolve().parent]
        if outside:
            raise UserError(f"{outside[0]}: not beside {options.index}; shards and index share a folder")
        left_out: list[str] | None = [] if options.leave_out else None
        index = index_shards(options.shards, options.index, left_out)
        for problem in left_out or []:
            print(f"left out: {problem}")
    files, offsets = read_index(index)
    print(f"{index}: {len(offsets)} images in {len(files)} shards")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="pack a split of a prepared dataset")
    pack.add_argument("source", type=user_path, help="folder of the prepared dataset")
    pack.add_argument("split")
    pack.add_argument("out", type=user_path, help="folder of the shards")
    pack.add_argument("--per-shard", type=at_least(1), default=10_000, help="images in a shard")
    index = commands.add_parser("index", help="index shards that are there")
    index.add_argument("index", type=user_path, help="NAME.shards.json, beside the shards")
    index.add_argument("shards", type=user_path, nargs="+", help="plain tar files")
    index.add_argument(
        "--leave-out", action="store_true", help="leave out and name records whose captions cannot be read"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
