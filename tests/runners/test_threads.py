"""How many threads a run computes with: chosen once, noted, kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_run import toy_config

from bita.config.load import config_to_yaml
from bita.machine import Others, cores
from bita.runners.run_dir import open_run_dir
from bita.runners.threads import use_threads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that nobody told how many threads it has."""
    threads = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(threads)


def threads_of(folder: Path, **options: object) -> tuple[int, int]:
    """Threads that a run in `folder` gets, and what its `run.json` says."""
    cfg = toy_config(folder, name="mine", resume="auto", **options)
    run_dir = open_run_dir(cfg)
    use_threads(cfg.run, run_dir, Others(), CPU)
    assert run_dir.lock is not None
    run_dir.lock.close()
    return torch.get_num_threads(), json.loads((folder / "mine/run.json").read_text())["threads"]


def test_a_run_that_goes_on_has_the_threads_that_it_began_with(tmp_path: Path) -> None:
    assert threads_of(tmp_path, threads=3) == (3, 3)
    meta = tmp_path / "mine/checkpoints/epoch_0001/meta.json"  # only a run with a checkpoint goes on
    meta.parent.mkdir(parents=True)
    meta.write_text("{}")
    torch.set_num_threads(1)
    cfg = toy_config(tmp_path, name="mine", resume="auto")  # as if nobody had said how many
    (tmp_path / "mine/config.yaml").write_text(config_to_yaml(cfg))
    assert threads_of(tmp_path) == (3, 3)


def test_all_cores_where_the_same_bits_are_wanted_twice(tmp_path: Path) -> None:
    assert threads_of(tmp_path, deterministic=True) == (cores(), cores())


def test_between_half_of_the_cores_and_all_of_them(tmp_path: Path) -> None:
    threads, noted = threads_of(tmp_path)
    assert max(1, cores() // 2) <= threads == noted <= cores()


def test_what_the_environment_says_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    assert threads_of(tmp_path) == (2, 2)
    assert os.environ["OMP_NUM_THREADS"] == "2"
