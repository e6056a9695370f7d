"""Compare scored runs: refuse what is not comparable, average over seeds, one table over datasets.

    python scripts/compare_runs.py output/a/seed1 output/a/seed2 output/b/seed1
    python scripts/compare_runs.py first.json second.json --dataset test --json table.json

Runs of one configuration that differ by their seed become one row, mean ± standard deviation. Exit code 1 if two
results on the same dataset were scored against other references or with other versions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from bita.commands import command_line, program
from bita.files import user_path, write_json
from bita.metrics.compare import check_comparable, find_results, rows, table


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, compare, print; returns the exit code."""
    parser = command_line(__doc__)
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="run folders or result files")
    parser.add_argument("--dataset", help="what the files' captions are of, when names of files do not tell")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write the rows here")
    args = parser.parse_args(arguments)
    # By file: `latest` and the run that it leads to are one.
    of_file = {result.path.resolve(): result for path in args.runs for result in find_results(path)}
    results = list(of_file.values())
    if args.dataset:
        results = [replace(result, dataset=args.dataset) for result in results]
    check_comparable(results)
    found = rows(results)
    print(table(found))
    if args.json is not None:
        write_json(args.json, [vars(row) for row in found])
    return 0


if __name__ == "__main__":
    sys.exit(main())
