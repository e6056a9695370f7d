"""`bita-export` and `bita-calibrate`: what is done to a run that is trained."""

from __future__ import annotations

from collections.abc import Sequence

from bita.checkpoint import start_with
from bita.commands import at_least, command_line, program
from bita.files import user_path

EXPORT = """Write a trained model as one folder that needs nothing else, or in the authors' layout.

bita-export output/bita/caption OUT
bita-export output/bita/caption OUT.pth --layout published

A checkout has it as scripts/export.py."""
CALIBRATE = """Fit the confidence of a captioning run to its validation split, and keep it in the run.

bita-calibrate output/quickstart/caption

Captions then have the quality to expect, from 0 to 1 (docs/captioning.md); so has what is exported afterwards.

A checkout has it as scripts/calibrate.py."""


@program
def export(arguments: Sequence[str] | None = None) -> int:
    """The command `bita-export`; its exit code."""
    parser = command_line(EXPORT)
    parser.add_argument("run", help="a run's folder (its best checkpoint is taken), or a checkpoint in it")
    parser.add_argument(
        "out", type=user_path, help="a folder, or with --layout published a .pth file, not there yet"
    )
    parser.add_argument("--layout", choices=("folder", "published"), default="folder")
    parser.add_argument("--max-shard", default="5GB", metavar="SIZE", help="largest file of weights (folder)")
    parser.add_argument(
        "--half",
        action="store_true",
        help="one file of weights, in 16 bit (folder; language model trained along)",
    )
    parser.add_argument(
        "--without-stage1",
        dest="stage1",
        action="store_false",
        help="leave out the stage-1 model, which image-text scores need (folder)",
    )
    parser.add_argument(
        "--stac", action="store_true", help="write model.stac.json, an Item of STAC's MLM extension (folder)"
    )
    args = parser.parse_args(arguments)
    from bita.export import export_folder, export_published

    if args.layout == "published":
        export_published(args.run, args.out)
    else:
        export_folder(args.run, args.out, max_shard=args.max_shard, half=args.half, stage1=args.stage1)
    if args.stac and args.layout == "folder":
        from bita.scenes.stac import write_model_item

        write_model_item(args.out)
    print(args.out)
    return 0


@program
def calibrate(arguments: Sequence[str] | None = None) -> int:
    """The command `bita-calibrate`; its exit code."""
    parser = command_line(CALIBRATE)
    parser.add_argument("run", help="a captioning run's folder, a checkpoint in it, or an export")
    parser.add_argument("--split", help="(default: the one that the run validated on)")
    parser.add_argument("--cache-root", type=user_path, help="where the datasets' relative paths start")
    parser.add_argument(
        "--stage1", metavar="RUN", help="stage-1 run for image-text scores (default: its own)"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=16, help="images encoded at a time (16)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args(arguments)
    start_with(args.run)
    from bita.inference.calibrate import calibrate as fit

    options = {name: value for name, value in vars(args).items() if name != "run"}
    path, calibration, _ = fit(args.run, **options)
    share = f", the image-text score counting {calibration.mix.share:.0%}" if calibration.mix else ""
    print(f"{path}: fitted to {calibration.captions} captions of {calibration.split}{share}")
    return 0
