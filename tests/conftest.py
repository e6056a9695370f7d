"""Fixtures that tests of several parts share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


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


@pytest.fixture(autouse=True)
def logger_as_it_was() -> Iterator[None]:
    """Undo what a command line run inside a test sets on the package's logger."""
    log = logging.getLogger("bita")
    level, handlers = log.level, log.handlers[:]
    yield
    log.setLevel(level)
    log.handlers[:] = handlers
