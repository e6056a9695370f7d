"""The command line that training and evaluation share: a configuration, checked first, then a run."""

from __future__ import annotations

import argparse
import logging
import os

from bita.config.checks import check_annotations, check_encoder_has_weights
from bita.config.load import config_to_yaml, load_config
from bita.config.schema import Config
from bita.errors import program


@program
def main(description: str | None, *, evaluate: bool, argv: list[str] | None = None) -> int:
    """Parse, check, build, run; the exit code: 0, 2 for a mistake in the configuration, 1 for any other of the user's.

    Args:
        description: shown by `--help`.
        evaluate: only score `run.test_splits`.
        argv: the arguments; None takes the program's own.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cfg-path", required=True, metavar="FILE", help="project file, such as those in configs/projects"
    )
    parser.add_argument(
        "--options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="e.g. run.max_epoch=1"
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
    from bita.models.language.tokenizers import keep_tokenizer
    from bita.runners.run_dir import open_run_dir
    from bita.runners.seeding import seed_process

    distributed.setup(cfg.run.device)
    seed_process(cfg.run.seed)
    datasets = build_datasets(cfg)
    run_dir = open_run_dir(cfg)
    model = build_model(cfg.model)
    if cfg.model.arch == "bita_opt" and distributed.is_main():
        keep_tokenizer(model.tokenizer, run_dir.path)
    distributed.barrier()  # one machine may have had more to fetch than another
    task = registry.tasks.get(cfg.run.task)(cfg)
    runner = registry.runners.get(cfg.run.runner)(cfg, model, task, datasets, run_dir)
    scores: dict[str, dict[str, float]] = runner.evaluate() if cfg.run.evaluate else runner.train()
    return scores
