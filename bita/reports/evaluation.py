"""The end of a pipeline: scores beside their floors and ceilings as `scores.json`, and the report of the run.

    python -m bita.reports.evaluation RUN OUT [--seconds N]

RUN is a caption run whose test split was scored; OUT gets `scores.json` and `report.html`. Beside the model stand the
same captions with the images shuffled, the most frequent training caption, the caption of the nearest training image,
where classes are known the most frequent one of the image's class, and, for the synthetic dataset, the caption rendered
from the true facts. `intervals` are bounds of 95%.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bita.commands import command_line, program
from bita.files import user_path, write_json
from bita.reports.judge import Judged
from bita.reports.report import findings, write_report

COLUMNS = ("Bleu_1", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")


def report(run: str, out: Path, seconds: float | None) -> dict[str, Any]:
    """Score, write both files, print the table; what `scores.json` holds."""
    found = findings([run], baselines=True, model=True)
    first, control, *others = found.systems
    scores: dict[str, Any] = {
        "test": first.usual,
        "intervals": {name: [bounds.low, bounds.high] for name, bounds in first.intervals.items()},
        "test_shuffled_images": control.usual,
        "seconds": seconds,
        "distinct_captions": len(set(first.captions.values())),
        "test_images": len(first.captions),
        "baselines": {system.name: system.usual for system in others},
    }
    if first.facts:
        scores["facts"] = first.facts
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "scores.json", scores)
    write_report(out / "report.html", found)
    print(table(found.systems))
    return scores


def table(systems: list[Judged]) -> str:
    """Return the scores in plain text."""
    lines = [f"{'':40}" + "".join(f"{name:>9}" for name in COLUMNS) + f"{'distinct':>10}"]
    for system in systems:
        cells = "".join(f"{system.usual.get(name, float('nan')):9.3f}" for name in COLUMNS)
        lines.append(f"{system.name:40}{cells}{len(set(system.captions.values())):10}")
    if systems[0].facts:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in systems[0].facts.items())
        lines.append(f"facts that this model's captions state rightly: {shares}")
    return "\n".join(lines)


@program
def main() -> int:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("run", help="a caption run's folder, or its output folder (then the latest)")
    parser.add_argument("out", type=user_path)
    parser.add_argument("--seconds", type=float, help="what the pipeline took, to be noted")
    args = parser.parse_args()
    report(args.run, args.out, args.seconds)
    print(f"look at {args.out / 'report.html'}; scores in {args.out / 'scores.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
