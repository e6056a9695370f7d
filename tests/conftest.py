"""Fixtures that tests of several parts share."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from bita import registry
from tests.checkout import checkout

__all__ = ["checkout"]


def pytest_configure() -> None:
    """Hear Ctrl-C again where a shell's `&` has it ignored: programs that a test starts and interrupts inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let what a test printed travel between processes: half a character, as some tests print, ends pytest-xdist."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(scope="session")
def bita_data() -> Path:
    """Folder of the published datasets, from BITA_DATA; without it tests are skipped, unless BITA_REQUIRE_DATA=1."""
    folder = os.environ.get("BITA_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder)
    reason = (
        f"BITA_DATA={folder}: no such folder" if folder else "BITA_DATA is not set: real data is not there"
    )
    if os.environ.get("BITA_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers, and the module `my_part` that it may write, are forgotten after it."""
    for kind in vars(registry).values():
        if isinstance(kind, registry.Registry):
            monkeypatch.setattr(kind, "_targets", dict(kind._targets))
            monkeypatch.setattr(kind, "_configs", dict(kind._configs))
    sys.modules.pop("my_part", None)
    yield
    sys.modules.pop("my_part", None)


@pytest.fixture(autouse=True)
def logger_as_it_was() -> Iterator[None]:
    """Undo what a command line run inside a test sets on the package's logger."""
    log = logging.getLogger("bita")
    level, handlers = log.level, log.handlers[:]
    yield
    log.setLevel(level)
    log.handlers[:] = handlers


@pytest.fixture(scope="session")
def start_method() -> str:
    """How tests start processes: forked off one that has imported everything and done nothing else.

    A child forked off the test process itself inherits torchrun's leftovers, whose threads it does not have, and
    dies when they are collected.
    """
    multiprocessing.set_forkserver_preload(["toy_run", "transformers.models.opt.modeling_opt"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return "forkserver"


@pytest.fixture
def little_space() -> Iterator[Callable[[int], None]]:
    """Say how large a file may become from now on, as on a disk that fills."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
