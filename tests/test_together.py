"""Processes that end: together, in order, with one message, and at last in any case."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from bita import distributed, liveness
from bita.commands import program
from bita.errors import UserError


def wrapped(out: Path) -> DistributedDataParallel:
    """A model whose end is written down: whether the group of processes was still there."""
    distributed.setup("cpu")
    net = DistributedDataParallel(torch.nn.Linear(8, 8))
    net.itself = [net]  # a circle, as hooks make them
    note = out / f"group_at_the_end_{distributed.rank()}"
    weakref.finalize(net, lambda: note.write_text(str(dist.is_initialized())))
    net(torch.ones(2, 8)).sum().backward()
    distributed.from_main(list(range(100)))
    return net


def trains(out: Path) -> None:
    net = wrapped(out)
    assert net.module.weight.grad is not None


def fails_on_rank_1(out: Path) -> None:
    net = wrapped(out)
    if distributed.rank() == 1:
        raise UserError("image x: broken")
    while True:  # in a collective that rank 1 does not come to
        distributed.gather_objects(net.training)


def fails_while_another_computes(out: Path) -> None:
    wrapped(out)
    if distributed.rank() == 1:
        raise UserError("image x: broken")
    time.sleep(600)


def fails_while_main_works(out: Path) -> None:
    """Rank 1 waits for the main process, which meets a fault that no user can mend."""
    net = wrapped(out)
    distributed.on_main(lambda: 1 / (len(net.itself) - 1))


def is_stopped(out: Path) -> None:
    """Rank 1 hangs for good; the others notice."""
    liveness.LOOK, liveness.SILENCE, liveness.GRACE = 0.1, 20, 1.0
    net = wrapped(out)
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    distributed.gather_objects(net.training)


def hangs_at_the_end(out: Path) -> None:
    """What is taken apart last hangs, and holds Python's lock."""
    liveness.LEAVING = 2
    distributed.setup("cpu")
    last = type("Last", (), {"__del__": lambda self: ctypes.PyDLL(None).sleep(600)})()
    sys.modules["held until the end"] = last  # type: ignore[assignment]
    if distributed.rank() == 1:
        gc.callbacks.append(lambda phase, info: sys.modules.pop("held until the end", None))


def work(action: Callable[[Path], None], rank: int, processes: int, port: int, out: Path) -> None:
    gc.freeze()  # what the fork server holds is not this process's to look through
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    sys.stderr = (out / f"said_{rank}").open("w")  # open to the last, for what is said on the way out
    os.dup2(sys.stderr.fileno(), 2)
    sys.exit(program(lambda: distributed.together(lambda: action(out)) or 0)())


@pytest.fixture
def ends(start_method: str, tmp_path: Path) -> Callable[[Callable[[Path], None], int], list[int | None]]:
    """Runs an action in so many processes; their exit codes, where one that does not end has None."""

    def start(action: Callable[[Path], None], processes: int) -> list[int | None]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context(start_method)
        ranks = [
            context.Process(target=work, args=(action, rank, processes, port, tmp_path))
            for rank in range(processes)
        ]
        for process in ranks:
            process.start()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and sum(process.exitcode is None for process in ranks) > (
            action is is_stopped
        ):
            time.sleep(0.05)
        codes = [process.exitcode for process in ranks]
        for process in ranks:
            process.kill()
        return codes

    return start


def said(out: Path) -> list[str]:
    """What each process said to its user, C++'s warnings aside."""
    return [
        "".join(line for line in path.read_text().splitlines(True) if not line.startswith("[W"))
        for path in sorted(out.glob("said_*"))
    ]


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.long), 4])
def test_what_holds_the_group_is_gone_before_the_group(ends, tmp_path, processes):
    assert ends(trains, processes) == [0] * processes
    notes = [path.read_text() for path in tmp_path.glob("group_at_the_end_*")]
    assert notes == ["True"] * processes
    assert said(tmp_path) == [""] * processes


@pytest.mark.parametrize("action", [fails_on_rank_1, fails_while_another_computes])
def test_an_error_of_one_process_ends_all_and_is_said_once(ends, tmp_path, action):
    assert ends(action, 3) == [1, 1, 1]
    assert said(tmp_path) == ["", "error: image x: broken\n", ""]
    assert (tmp_path / "group_at_the_end_1").read_text() == "True"


def test_a_fault_on_the_main_process_ends_those_that_wait_for_it(ends, tmp_path):
    assert ends(fails_while_main_works, 2) == [1, 1]
    main, other = said(tmp_path)
    assert main.rstrip().endswith("ZeroDivisionError: division by zero")
    assert other == ""
    assert (tmp_path / "group_at_the_end_0").read_text() == "True"


def test_a_process_that_hangs_is_named(ends, tmp_path):
    assert ends(is_stopped, 3) == [1, None, 1]
    (message,) = [text for text in said(tmp_path) if text]
    assert message.startswith("error: rank 1 showed no sign of life for 2 s: ")


@pytest.mark.skipif(sys.platform != "linux", reason="a timer of Linux's C library")
def test_a_process_that_hangs_after_its_work_is_named_and_ends_with_the_code_it_had(ends, tmp_path):
    assert ends(hangs_at_the_end, 2) == [0, 0]
    assert "rank 1 of 2 did not end within 2 s" in said(tmp_path)[1]


@pytest.mark.long
def test_a_dozen_launches_of_four_processes_end():
    """Whole runs: training, validation, test, with workers; the first one through torchrun."""
    script = Path(__file__).parents[1] / "scripts/checks/launch_test.py"
    command = [sys.executable, str(script), "--launches", "12", "--processes", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("12 of 12 launches: every process ended with 0\n")


MISTAKEN = """
import sys
from bita.commands import program
from bita.errors import UserError

@program
def main():
    from bita import distributed

    def work():
        distributed.setup("cpu")
        open(f"{sys.argv[1]}/started", "a").write("x")
        if distributed.rank() == 1:
            raise UserError("image x: broken")
        distributed.barrier()

    return distributed.together(work)

sys.exit(main())
"""


def test_under_torchrun_a_mistake_is_said_once_and_not_tried_again(tmp_path):
    (tmp_path / "mistaken.py").write_text(MISTAKEN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--max-restarts=3", str(tmp_path / "mistaken.py"), str(tmp_path)]
    variables = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said == ["error: image x: broken"]
    assert "image x: broken" in done.stderr.partition("Root Cause")[2]
    assert (tmp_path / "started").read_text() == "xx"
