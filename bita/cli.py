"""The command lines: training and evaluation by a configuration, checked before anything runs; captioning."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from bita.config.checks import check_annotations, check_encoder_has_weights
from bita.config.load import config_to_yaml, load_config
from bita.config.schema import Config
from bita.errors import UserError, at_least, command_line, no_file, program
from bita.files import user_path

TRAIN = """Train a model: either pretraining stage, or caption fine-tuning.

bita-train --cfg-path configs/projects/bita/train/pretrain_stage1.yaml --options key=value …
torchrun --standalone --nproc-per-node 4 --no-python bita-train --cfg-path …

A checkout has it as train.py."""
EVALUATE = """Caption and score the test splits with a trained model.

bita-evaluate --cfg-path configs/projects/bita/eval/caption_eval.yaml --options key=value …
torchrun --standalone --nproc-per-node 4 --no-python bita-evaluate --cfg-path …

A checkout has it as evaluate.py."""
CAPTION = """Caption images with a trained model, one caption a line.

bita-caption --checkpoint output/quickstart/caption image.jpg folder/*.tif

A checkout has it as caption.py."""


def train(arguments: Sequence[str] | None = None) -> int:
    """The command `bita-train`; its exit code."""
    return main(TRAIN, evaluate=False, argv=arguments)


def evaluate(arguments: Sequence[str] | None = None) -> int:
    """The command `bita-evaluate`; its exit code."""
    return main(EVALUATE, evaluate=True, argv=arguments)


@program
def caption(arguments: Sequence[str] | None = None) -> int:
    """The command `bita-caption`; its exit code."""
    parser = command_line(CAPTION)
    parser.add_argument("images", type=user_path, nargs="+", metavar="IMAGE")
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="a run's folder, a checkpoint in it, or what scripts/export.py wrote",
    )
    parser.add_argument("--beams", type=at_least(1), help="beams of the search (default: as in the run)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--num-captions", type=at_least(1), default=1, help="captions an image, tabs between them"
    )
    parser.add_argument("--quantize", default="none", choices=("none", "int8", "int4"))
    args = parser.parse_args(arguments)
    settings = {"num_captions": args.num_captions}
    if args.beams is not None:
        settings["num_beams"] = args.beams
    for image in args.images:
        if not image.is_file():
            raise UserError(f"image {image}: {no_file(image)}")
    from bita.inference.captioner import Captioner

    captioner = Captioner.load(args.checkpoint, args.device, args.quantize)
    for record in captioner.stream(args.images, score=False, **settings):
        print(*record.candidates, sep="\t", flush=True)
    return 0


@program
def main(description: str | None, *, evaluate: bool, argv: Sequence[str] | None = None) -> int:
    """Parse, check, build, run; the exit code: 0, 2 for a mistake in the configuration, 1 for any other of the user's.

    Args:
        description: shown by `--help`.
        evaluate: only score `run.test_splits`.
        argv: the arguments; None takes the program's own.
    """
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
    args = parser.parse_args(argv)
    options = [*args.options, "run.evaluate=true"] if evaluate else args.options
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # the others of this machine would say the same
    show_warnings(logging.WARNING if first else logging.ERROR)
    cfg = load_config(args.cfg_path, options, need_files=not args.print_config)
    if args.print_config:
        print(config_to_yaml(cfg), end="")
        return 0
    check_encoder_has_weights(cfg)
    check_annotations(cfg)
    if not args.check:
        from bita import distributed

        distributed.together(lambda: run(cfg))
    return 0


def show_warnings(level: int) -> None:
    """Print the warnings of this package as `warning: …`, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    log = logging.getLogger("bita")
    log.handlers[:] = [handler]
    log.setLevel(level)


def run(cfg: Config) -> dict[str, dict[str, float]]:
    """Build everything that a configuration names, and run it, inside `distributed.together`; split → scores."""
    from bita import distributed, registry
    from bita.build import build_model
    from bita.datasets.builders import build_datasets
    from bita.runners.run_dir import open_run_dir
    from bita.runners.seeding import seed_process

    distributed.setup(cfg.run.device)
    seed_process(cfg.run.seed)
    datasets = build_datasets(cfg)
    run_dir = open_run_dir(cfg)
    model = build_model(cfg.model)
    if distributed.is_main():
        model.keep_tokenizer(run_dir.path)
    distributed.barrier()  # one machine may have had more to fetch than another
    task = registry.tasks.get(cfg.run.task)(cfg)
    runner = registry.runners.get(cfg.run.runner)(cfg, model, task, datasets, run_dir)
    scores: dict[str, dict[str, float]] = runner.evaluate() if cfg.run.evaluate else runner.train()
    return scores
