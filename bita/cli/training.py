"""`bita-train` and `bita-evaluate`: a configuration, checked before anything runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bita import registry
from bita.commands import command_line, others_see_it_too, program
from bita.errors import ConfigError
from bita.files import user_path
from bita.machine import Others, start_program

if TYPE_CHECKING:
    from bita.config.schema import Config

TRAIN = """Train a model: either pretraining stage, or caption fine-tuning.

bita-train --cfg-path configs/projects/bita/train/pretrain_stage1.yaml --options key=value …
torchrun --standalone --nproc-per-node 4 --no-python bita-train --cfg-path …

A checkout has it as train.py."""
EVALUATE = """Caption and score the test splits with a trained model.

bita-evaluate --cfg-path configs/projects/bita/eval/caption_eval.yaml --options key=value …
torchrun --standalone --nproc-per-node 4 --no-python bita-evaluate --cfg-path …

A checkout has it as evaluate.py."""


def train(arguments: Sequence[str] | None = None) -> int:
    """The command `bita-train`; its exit code."""
    return main(TRAIN, evaluate=False, arguments=arguments)


def evaluate(arguments: Sequence[str] | None = None) -> int:
    """The command `bita-evaluate`; its exit code."""
    return main(EVALUATE, evaluate=True, arguments=arguments)


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
    once = not evaluate and args.once
    if not (args.check or (once and _finished(cfg))):
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
    else:
        parser.add_argument(
            "--once",
            action="store_true",
            help="do nothing where run.output_dir/latest is finished, with the same configuration",
        )
    return parser


def _finished(cfg: Config) -> bool:
    """Whether the last run of this configuration is finished, and say so."""
    from bita.runners.run_dir import finished_run

    found = finished_run(cfg)
    if found is not None and not others_see_it_too():
        print(f"{found}: finished already, with the same configuration")
    return found is not None


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
