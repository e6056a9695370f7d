"""The command lines: training and evaluation by a configuration, checked before anything runs; captioning."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from bita import registry
from bita.checkpoint import start_with
from bita.commands import above, at_least, command_line, program
from bita.errors import ConfigError
from bita.files import user_path
from bita.machine import Others, start_program
from bita.packages import BOX

if TYPE_CHECKING:
    from bita.config.schema import Config
    from bita.models.language.generation import GenerationSettings

TRAIN = """Train a model: either pretraining stage, or caption fine-tuning.

bita-train --cfg-path configs/projects/bita/train/pretrain_stage1.yaml --options key=value …
torchrun --standalone --nproc-per-node 4 --no-python bita-train --cfg-path …

A checkout has it as train.py."""
EVALUATE = """Caption and score the test splits with a trained model.

bita-evaluate --cfg-path configs/projects/bita/eval/caption_eval.yaml --options key=value …
torchrun --standalone --nproc-per-node 4 --no-python bita-evaluate --cfg-path …

A checkout has it as evaluate.py."""
CAPTION = """Caption images with a trained model: files, folders, patterns, or - for a list on standard input.

bita-caption image.jpg folder 'scenes/**/*.tif' > captions.txt
bita-caption --checkpoint output/quickstart/caption folder --output captions.csv
bita-caption --checkpoint output/quickstart/caption scene.tif --crop 256 --format gpkg

Of one file its caption is printed; of several a line each: name, tab, caption. With --output each line is a record; a
second start of the same command leaves out images that are in the file with the same content. An image that does not
open is told, and the others go on.

Exit code: 0, every image has a caption; 1, some do not open, or nothing could be done; 2, a wrong argument.

A checkout has it as caption.py."""

SEARCH = """Find images, or tiles of a scene, by words.

bita-search "two planes beside a terminal" FOLDER --checkpoint output/quickstart/caption
bita-search "two planes beside a terminal" scene.tif --checkpoint RUN --output found.geojson

The vectors of what was seen once are kept in an index (docs/search.md).

A checkout has it as scripts/image_search.py."""
CALIBRATE = """Fit the confidence of a captioning run to its validation split, and keep it in the run.

bita-calibrate output/quickstart/caption

Captions then have the quality to expect, from 0 to 1 (docs/captioning.md); so has what is exported afterwards.

A checkout has it as scripts/calibrate.py."""

EXPORT = """Write a trained model as one folder that needs nothing else, or in the authors' layout.

bita-export output/bita/caption OUT
bita-export output/bita/caption OUT.pth --layout published

A checkout has it as scripts/export.py."""


def train(arguments: Sequence[str] | None = None) -> int:
    """The command `bita-train`; its exit code."""
    return main(TRAIN, evaluate=False, arguments=arguments)


def evaluate(arguments: Sequence[str] | None = None) -> int:
    """The command `bita-evaluate`; its exit code."""
    return main(EVALUATE, evaluate=True, arguments=arguments)


@program
def caption(arguments: Sequence[str] | None = None) -> int:
    """The command `bita-caption`; its exit code."""
    from bita.scenes import command as scenes

    parser = _caption_line()
    args = parser.parse_args(arguments)
    if not args.images and not scenes.is_wanted(args):
        parser.error("name an image, or a folder of them")
    rasters = scenes.check(args) if scenes.is_wanted(args) else []
    from bita.inference.outputs import RecordFile, format_of
    from bita.inference.sources import find_images

    if args.output is not None and not rasters:
        format_of(args.output)
    images = [] if rasters else find_images(args.images)
    start_with(args.checkpoint)
    from bita.inference.captioner import Captioner
    from bita.inference.jobs import print_captions, write_captions

    given = {name: value for name, value in vars(args).items() if name in CHANGES and value is not None}
    settings = ", ".join(f"{name}={value!r}" for name, value in given.items())
    stage1 = given.pop("stage1", None)
    given.setdefault("num_captions", 1)
    captioner = Captioner.load(args.checkpoint, args.device, args.quantize, stage1, given.pop("prompt", None))
    _check_search(given, captioner.settings)
    if rasters:
        return scenes.run(args, rasters, captioner, settings, **given)
    if args.output is None:
        alone = [str(image) for image in images] == args.images  # one file, whose name was just typed
        named = len(images) > 1 or not alone
        failed = print_captions(captioner, images, named=named, batch_size=args.batch_size, **given)
        return int(failed > 0)
    with RecordFile(args.output, captioner.hash, settings, args.overwrite) as out:
        failed = write_captions(captioner, images, out, batch_size=args.batch_size, **given)
    if failed:
        count = (
            f"{failed} of {len(images)} images have no caption"
            if len(images) > 1
            else "the image has no caption"
        )
        print(f"error: {count}; {args.output} says why", file=sys.stderr)
    return int(failed > 0)


def _check_search(given: dict[str, Any], settings: GenerationSettings) -> None:
    """Raise ConfigError where an option of the search would change nothing beside the others and the run's own."""
    drawn = given.get("use_nucleus_sampling", settings.use_nucleus_sampling)
    for name in () if drawn else ("top_p", "temperature", "seed"):
        if name in given:
            raise ConfigError(f"--{name.replace('_', '-')}: is of captions that are drawn; add --nucleus")
    found = given["num_captions"] if drawn else given.get("num_beams", settings.num_beams)
    if given.get("choose_by") == "consensus" and found == 1:
        more = "--num-captions" if drawn else "--beams"
        raise ConfigError(f"--choose-by consensus: one caption leaves no choice; set {more} above 1")


@program
def search(arguments: Sequence[str] | None = None) -> int:
    """The command `bita-search`; its exit code."""
    args = _search_line().parse_args(arguments)
    start_with(args.checkpoint)
    from bita.scenes.search import run as find

    return find(args)


CHANGES = (
    *("num_beams", "num_captions", "use_nucleus_sampling", "top_p", "temperature", "seed", "prompt"),
    *("choose_by", "views", "stage1"),
)
"""Options that change what is written from what the run itself would write."""


def _caption_line() -> argparse.ArgumentParser:
    from bita.config.run import MOST_VIEWS, Choice
    from bita.scenes.command import add_options as add_scenes

    parser = command_line(CAPTION)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="a file, a folder, a pattern, or -")
    parser.add_argument(
        "--checkpoint",
        default=BOX,
        help="a run's folder, a checkpoint in it, or an export (default: what the package brings)",
    )
    parser.add_argument(
        "--output",
        type=user_path,
        metavar="FILE",
        help="records instead of lines: FILE.csv, FILE.jsonl or FILE.txt",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="begin FILE anew instead of going on with it"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=16, help="images encoded at a time (16)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--quantize", default="none", choices=("none", "int8", "int4"))
    parser.add_argument(
        "--stage1", metavar="RUN", help="stage-1 run for image-text scores (default: its own)"
    )
    add_scenes(parser)
    search = parser.add_argument_group("search (default: as in the run)")
    search.add_argument("--beams", dest="num_beams", type=at_least(1), help="of the search")
    search.add_argument("--num-captions", type=at_least(1), help="captions an image, tabs between them (1)")
    search.add_argument(
        "--choose-by", choices=get_args(Choice), help="the likeliest, or most like the others"
    )
    search.add_argument(
        "--views", type=at_least(1, MOST_VIEWS), help="turned and mirrored ones, of which the mean is read"
    )
    search.add_argument("--prompt", help="what captions begin with, and do not repeat")
    search.add_argument(
        "--nucleus", dest="use_nucleus_sampling", action="store_true", default=None, help="draw captions"
    )
    search.add_argument("--top-p", type=above(0, 1), help="share of the probability that is drawn from")
    search.add_argument("--temperature", type=above(0), help="above 1 draws more freely")
    search.add_argument("--seed", type=at_least(0), help="of drawn captions (0)")
    return parser


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


@program
def main(description: str | None, *, evaluate: bool, arguments: Sequence[str] | None = None) -> int:
    """Parse, check, build, run; the exit code: 0, 2 for a mistake in the configuration, 1 for any other of the user's.

    Args:
        description: shown by `--help`.
        evaluate: only score `run.test_splits`.
        arguments: of the command line; None takes the program's own.
    """
    args = _parser(description, evaluate).parse_args(arguments)
    from bita.config.checks import check_annotations, check_encoder_has_weights
    from bita.config.load import config_to_yaml, load_config

    options = [*args.options, "run.evaluate=true"] if evaluate else args.options
    cfg = load_config(args.cfg_path, options, need_files=not args.print_config)
    if args.print_config:
        print(config_to_yaml(cfg), end="")
        return 0
    check_encoder_has_weights(cfg)
    check_annotations(cfg)
    report = evaluate and args.report
    if report and not registry.tasks.config(cfg.run.task).needs_captions:
        raise ConfigError(
            f"--report: it shows captions, and run.task={cfg.run.task} writes none; leave it out"
        )
    if not args.check:
        start_program()
        from bita import distributed

        distributed.together(lambda: run(cfg, report))
    return 0


def _parser(description: str | None, evaluate: bool) -> argparse.ArgumentParser:
    parser = command_line(description)
    parser.add_argument(
        "--cfg-path",
        required=True,
        type=user_path,
        metavar="FILE",
        help="project file, such as those in configs/projects",
    )
    parser.add_argument(
        "--options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="e.g. run.max_epoch=1; a text is taken as typed, null empties a key (docs/options.md)",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="show the resolved configuration and stop"
    )
    parser.add_argument(
        "--check", action="store_true", help="check the configuration and the files it names, and stop"
    )
    if evaluate:
        parser.add_argument("--report", action="store_true", help="write report.html into the run's folder")
    return parser


def run(cfg: Config, report: bool = False) -> dict[str, dict[str, float]]:
    """Build everything that a configuration names, and run it, inside `distributed.together`; split → scores.

    Args:
        cfg: the resolved configuration.
        report: write the report of what was captioned, beside the scores.
    """
    others = Others()  # looks on while libraries are imported and the model is built
    from bita import distributed
    from bita.build import build_model
    from bita.datasets.builders import build_datasets
    from bita.runners.run_dir import open_run_dir
    from bita.runners.seeding import seed_process
    from bita.runners.threads import use_threads

    device = distributed.setup(cfg.run.device)
    seed_process(cfg.run.seed)
    datasets = build_datasets(cfg)
    run_dir = open_run_dir(cfg)
    model = build_model(cfg.model)
    if distributed.is_main():
        model.keep_tokenizer(run_dir.path)
    distributed.barrier()  # one machine may have had more to fetch than another
    use_threads(cfg.run, run_dir, others, device)
    task = registry.tasks.get(cfg.run.task)(cfg)
    runner = registry.runners.get(cfg.run.runner)(cfg, model, task, datasets, run_dir)
    scores: dict[str, dict[str, float]] = runner.evaluate() if cfg.run.evaluate else runner.train()
    if report:
        from bita.reports.report import write_reports

        for path in distributed.on_main(lambda: write_reports(run_dir.path)):
            if distributed.is_main():
                print(f"look at {path}")
    return scores
