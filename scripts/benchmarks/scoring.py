"""Time scoring: pycocoevalcap run fresh, then our first, second and third validation of the same split.

    python scripts/benchmarks/scoring.py DATASET_JSON [--split test] [--images N] [--json FILE]

DATASET_JSON is a dataset as published (`dataset_rsicd.json`). Every set of hypotheses takes captions of other images,
drawn anew, so that no answer is known from the set before. Each of pycocoevalcap's runs is a process of its own, and
its import is not counted. `benchmarks/metrics.md` has the figures and how the machine was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from turns import Row, row

from bita.commands import command_line, program
from bita.errors import UserError
from bita.metrics import CaptionScorer

PLAIN = Path(__file__).parents[2] / "tests" / "metrics" / "plain.py"
VALIDATIONS = 3


@program
def main() -> int:
    """Measure, print a table, write the figures; exit code 1 when scores differ."""
    parser = command_line(__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, help="only the first so many")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    references = read(args.dataset, args.split, args.images)
    sets = [hypotheses(references, seed) for seed in range(VALIDATIONS)]
    with tempfile.TemporaryDirectory() as folder:
        plain = [run_plain(Path(folder), references, captions) for captions in sets]
    ours, differing = run_ours(references, sets, plain)
    figures = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the end",
        "images": len(references),
        "references": sum(map(len, references.values())),
        "pycocoevalcap": [round(scores["seconds"], 2) for scores in plain],
        "bita": [round(seconds, 2) for seconds in ours],
        "ratio_of_second": round(plain[1]["seconds"] / ours[1], 2),
        "ratio_of_third": round(plain[2]["seconds"] / ours[2], 2),
        "equal": not differing,
    }
    print(json.dumps(figures, indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 1 if differing else 0


def scoring(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """Row of benchmark.py: the second and third validation of a split, against pycocoevalcap run fresh for each."""
    if args.data is None:
        raise UserError("--data: name a dataset as published, such as $BITA_DATA/ucm_captions/dataset.json")
    references = read(args.data, "test", 6 if args.small else None)
    sets = [hypotheses(references, seed) for seed in range(VALIDATIONS)]
    plain = [run_plain(scratch, references, captions) for captions in sets]
    ours, differing = run_ours(references, sets, plain)
    if differing:
        raise UserError(f"scores differ: {', '.join(differing)}")
    return [
        row(
            f"scoring, a validation after the first, {args.data.stem}",
            [seconds / len(references) for seconds in ours[1:]],
            [scores["seconds"] / len(references) for scores in plain[1:]],
            against="pycocoevalcap fresh",
            unit="image",
            same="every score of every image equal",
            wanted=5,
        )
    ]


def read(path: Path, split: str, limit: int | None) -> dict[int, list[str]]:
    """References of a split, as published."""
    images = [
        image for image in json.loads(path.read_text(encoding="utf-8"))["images"] if image["split"] == split
    ]
    return {
        k: [sentence["raw"] for sentence in image["sentences"]] for k, image in enumerate(images[:limit], 1)
    }


def hypotheses(references: dict[int, list[str]], seed: int) -> dict[int, str]:
    """For each image a caption of another one."""
    rng = random.Random(seed)
    others = list(references)
    rng.shuffle(others)
    return {n: rng.choice(references[other]) for n, other in zip(references, others, strict=True)}


def run_plain(folder: Path, references: dict[int, list[str]], captions: dict[int, str]) -> dict[str, Any]:
    """pycocoevalcap's scores, with the seconds that it took."""
    source, target = folder / "sets.json", folder / "scores.json"
    source.write_text(
        json.dumps({"references": references, "hypotheses": {"one": captions}}), encoding="utf-8"
    )
    subprocess.run([sys.executable, str(PLAIN), str(source), str(target)], check=True)
    scores: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))["one"]
    return scores


def run_ours(
    references: dict[int, list[str]], sets: list[dict[int, str]], plain: list[dict[str, Any]]
) -> tuple[list[float], list[str]]:
    """Seconds of each validation, and what differed from pycocoevalcap."""
    seconds, differing = [], []
    with CaptionScorer() as scorer:
        for k, captions in enumerate(sets):
            start = time.perf_counter()
            scores = scorer.score(references, captions)
            seconds.append(time.perf_counter() - start)
            for metric, values in plain[k]["per_image"].items():
                if [found[metric] for found in scores.per_image.values()] != values:
                    differing.append(f"{metric} of set {k}")
            if scores.overall != plain[k]["overall"]:
                differing.append(f"overall of set {k}")
    for what in differing:
        print(f"differs: {what}", file=sys.stderr)
    return seconds, differing


if __name__ == "__main__":
    sys.exit(main())
