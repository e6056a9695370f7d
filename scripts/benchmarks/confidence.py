"""Is a captioning run's confidence worth anything: on a split that it was not fitted to, one line a run.

    python scripts/benchmarks/confidence.py output/ucm/caption output/rsicd/caption --markdown benchmarks/confidence.md

Each run is calibrated before (scripts/calibrate.py, on its validation split). Before calibration a caption's confidence
is the geometric mean of its tokens' probabilities. CIDEr-D of a caption is that within the split; what its quality is
says docs/captioning.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from reproduce import machine

from bita.commands import at_least, command_line, program
from bita.errors import UserError
from bita.files import user_path

HEADER = (
    "| run | captions | CIDEr-D of all | of the most confident half | of the other half | "
    "calibration error before | after | image-text score counts |\n|---|---|---|---|---|---|---|---|"
)


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--split", default="test")
    parser.add_argument("--cache-root", type=user_path, help="where the datasets' relative paths start")
    parser.add_argument("--batch-size", type=at_least(1), default=16)
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    args = parser.parse_args(arguments)
    rows = [line(run, args.split, args.cache_root, args.batch_size) for run in args.runs]
    text = "\n".join([f"{machine()}, split {args.split}\n", HEADER, *rows]) + "\n"
    print(text, end="")
    if args.markdown is not None:
        args.markdown.write_text(text, encoding="utf-8")
    return 0


def line(run: str, split: str, cache_root: Path | None, batch_size: int) -> str:
    """Return a run's line of the table.

    Raises:
        UserError: it was not calibrated.
    """
    import bita
    from bita.export import config_of
    from bita.inference.calibrate import judge
    from bita.inference.confidence import expected_calibration_error, uncalibrated

    captioner, cfg = bita.load(run), config_of(run)
    calibration = captioner.calibration
    if calibration is None:
        raise UserError(
            f"{run}: has no calibration for these weights; start scripts/calibrate.py {run} before"
        )
    if cache_root is not None:
        cfg.env.cache_root = str(cache_root)
    judged = judge(captioner, cfg, split, batch_size)
    confidence = np.array([record.confidence for record in judged.records], np.float64)
    quality = judged.quality(calibration.consensus)
    order = np.argsort(-confidence, kind="stable")
    half = len(order) // 2
    ranked = judged.cider[order]
    cells = (
        run,
        str(len(order)),
        *(f"{part.mean():.3f}" for part in (ranked, ranked[:half], ranked[half:])),
        f"{expected_calibration_error(uncalibrated(judged.likelihood), quality):.3f}",
        f"{expected_calibration_error(confidence, quality):.3f}",
        "not there" if calibration.mix is None else f"{calibration.mix.share:.0%}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
