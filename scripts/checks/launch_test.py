"""Start a training run in several processes again and again, and check that every one of them ends.

    python scripts/checks/launch_test.py --launches 100 --processes 2 3 4

Trains a small stage-1 model on synthetic scenes for a few steps, with validation and test. Processes come from a fork
server that has imported everything, which makes a launch take seconds; the first launch of each number goes through
torchrun as users start it. Exit code 0 only if every process of every launch ended with 0 in time.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from crash_test import ROOT, prepare, small_run

from bita.commands import command_line, program

PATIENCE = 300.0
"""Seconds after which a launch counts as one that does not end."""
IMAGES = 24
PRELOADED = [
    "bita.cli",
    "bita.runners.epoch_runner",
    "bita.tasks",
    "torch.utils.tensorboard",
    "transformers.models.auto.tokenization_auto",
    "transformers.generation.utils",
]
"""What a run imports by and by."""


def main_of(rank: int, processes: int, port: int, argv: list[str], log: Path) -> None:
    """What `torchrun` would start as one of `processes`."""
    import torch

    from bita import cli

    gc.freeze()  # what the fork server holds is not this process's to look through
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(cli.main("", evaluate=False, arguments=argv))


def launch(processes: int, argv: list[str], log: Path) -> str:
    """Run once; what is wrong with how it ended, or nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    ranks = [
        context.Process(target=main_of, args=(rank, processes, port, argv, log)) for rank in range(processes)
    ]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + PATIENCE
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = {rank: process.exitcode for rank, process in enumerate(ranks)}
    for process in ranks:
        process.kill()
        process.join()
    wrong = {rank: code for rank, code in codes.items() if code != 0}
    return ", ".join(
        f"rank {rank} {'does not end' if code is None else f'ends with {code}'}"
        for rank, code in wrong.items()
    )


def torchrun(processes: int, argv: list[str], log: Path) -> str:
    """Run once as users do; what is wrong with how it ended, or nothing."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with log.open("ab") as file:
        started = subprocess.Popen(
            [*command, str(ROOT / "train.py"), *argv], cwd=ROOT, stdout=file, stderr=file
        )
        try:
            code = started.wait(3 * PATIENCE)
        except subprocess.TimeoutExpired:
            started.kill()
            return "torchrun does not end"
    return f"torchrun: exit code {code}" if code else ""


@program
def main() -> int:
    """Launch, count, print; the exit code."""
    parser = command_line(__doc__)
    parser.add_argument("--launches", type=int, default=100, help="of each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="of the run")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    multiprocessing.set_forkserver_preload(PRELOADED)
    sizes = ["run.max_epoch=1", "run.batch_size_train=2", "run.save_every_steps=2"]
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        prepare(out / "data", IMAGES)
        for processes in args.processes:
            started = time.monotonic()
            for number in range(args.launches):
                argv = small_run(out / "data", out / f"{processes}_{number}", *sizes, images=IMAGES)
                argv += args.options
                log = out / f"{processes}_{number}.txt"
                wrong = (launch if number else torchrun)(processes, argv, log)
                results["wrong" if wrong else "right"] += 1
                if wrong:
                    print(f"{processes} processes, launch {number}: {wrong}\n{log.read_text()}", flush=True)
            took = time.monotonic() - started
            print(f"{processes} processes: {args.launches} launches, {took:.0f} s", flush=True)
    print(f"{results['right']} of {results.total()} launches: every process ended with 0")
    if args.json:
        figures = {"launches": results.total(), "ended": results["right"], "processes": args.processes}
        args.json.write_text(json.dumps(figures) + "\n")
    return 1 if results["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
