"""Runs of several language models on one test split: scores, the shuffled control, and the same captions in 8 bit.

    python scripts/benchmarks/compare_decoders.py OUT FAMILY… [--markdown FILE]

OUT/FAMILY is a caption run whose test split was scored (scripts/benchmarks/decoders.sh trains them).
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import bita
from bita.commands import command_line, program
from bita.metrics import score_captions
from bita.models.language.quantize import size_in_bytes
from bita.reports.split import Run, Split, shuffled

COLUMNS = ("Bleu_4", "METEOR", "CIDEr")
HEADER = (
    "| language model | weights | BLEU-4 | METEOR | CIDEr | CIDEr, images shuffled | captions equal in 8 bit | "
    "MB of the language model → in 8 bit |\n|---|---|---|---|---|---|---|---|"
)


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("families", nargs="+", metavar="FAMILY")
    parser.add_argument(
        "--images", type=int, default=200, help="test images captioned in 8 bit (default 200)"
    )
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    args = parser.parse_args(arguments)
    rows = [compare(args.out / family, args.images) for family in args.families]
    machine = (
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
    text = "\n".join([f"{machine}\n", HEADER, *rows]) + "\n"
    print(text)
    if args.markdown is not None:
        args.markdown.write_text(text)
    return 0


def compare(run: Path, images: int) -> str:
    """Return the row of one run."""
    opened = Run.open(run)
    split = Split(opened)
    captions = opened.captions(split.name)
    scores = score_captions(split.references, captions).overall
    control = score_captions(split.references, shuffled(captions)).overall
    chosen = sorted(captions)[:images]
    paths = [split.images[image] for image in chosen]
    written, sizes, name, weights = [], [], "", 0
    for quantize in ("none", "int8"):
        captioner = bita.load(run, "cpu", quantize)
        written.append([str(record) for record in captioner.stream(paths, batch_size=50, score=False)])
        model = captioner.model.language_model()
        assert model is not None
        sizes.append(size_in_bytes(model) / 1e6)
        name, weights = type(model).__name__, sum(p.numel() for p in model.parameters())
    same = sum(a == b for a, b in zip(*written, strict=True)) / len(paths)
    cells = (
        f"{run.name} ({name})",
        f"{weights:,}",
        *(f"{scores[column]:.3f}" for column in COLUMNS),
        f"{control['CIDEr']:.3f}",
        f"{same:.1%} of {len(paths)}",
        f"{sizes[0]:.2f} → {sizes[1]:.2f}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
