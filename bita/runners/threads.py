"""How many threads a run computes with on a CPU: its bytes depend on that, so a run keeps those that it began with."""

from __future__ import annotations

import os
import sys

import torch

from bita import distributed, machine
from bita.config.run import RunConfig
from bita.runners.run_dir import RunDir, update_run_file


def use_threads(run: RunConfig, run_dir: RunDir, others: machine.Others, device: torch.device) -> None:
    """Let torch compute with `run.threads`, and note the number in `run.json`.

    Where the key is null: as OMP_NUM_THREADS says, which torchrun sets for several processes; a run that goes on, as it
    began; `run.deterministic`, with all cores; else with as many as other programs leave (`machine.threads_beside`).
    """
    chosen = run.threads
    if chosen is None and device.type == "cpu" and not _told():
        chosen = run_dir.about().get("threads") or (machine.cores() if run.deterministic else _beside(others))
    if chosen is not None:
        torch.set_num_threads(chosen)
    if distributed.is_main():
        update_run_file(run_dir.path, threads=torch.get_num_threads())


def _told() -> bool:
    """Whether the environment says how many threads there are, or other processes of the run have their own."""
    return "OMP_NUM_THREADS" in os.environ or distributed.world_size() > 1


def _beside(others: machine.Others) -> int:
    busy = others.busy_cores()
    chosen = machine.threads_beside(busy)
    if chosen < machine.cores():
        said = f"other programs keep {busy:.1f} of {machine.cores()} cores busy, so this run has"
        print(f"{said} {chosen} thread{'s' if chosen > 1 else ''} (run.threads)", file=sys.stderr)
    return chosen
