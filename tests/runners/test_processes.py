"""Training in two real processes started by torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def toy(processes: int, out: Path, *options: str, restarts: int = 0, fault: str = "@-1@-1"):
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += [f"--max-restarts={restarts}", "--monitor-interval=0.1"]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOY_FAULT": fault}
    return subprocess.run(
        [*command, str(HERE / "toy_run.py"), str(out), *options],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def weights(out: Path, name: str = "last") -> bytes:
    return (out / "latest/checkpoints" / name / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    answer = toy(2, out, "name=run", "accum_grad_iters=2", "batch_size_train=1", 'valid_splits=["val"]')
    assert answer.returncode == 0, answer.stderr
    return out


def test_killed_process_is_restarted_and_nothing_is_lost(tmp_path, whole):
    """Rank 1 is killed inside epoch 2; torchrun restarts both, which go on from the last save."""
    options = (
        "name=run",
        "accum_grad_iters=2",
        "batch_size_train=1",
        'valid_splits=["val"]',
        "save_every_steps=2",
    )
    answer = toy(2, tmp_path, *options, restarts=1, fault="kill@9@1")
    assert answer.returncode == 0, answer.stderr
    assert weights(tmp_path) == weights(whole)
    lines = map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if line["event"] == "resumed"] == [8]
    assert (tmp_path / "run/validation.json").read_text() == (whole / "run/validation.json").read_text()


def test_fault_of_one_process_is_every_processes(tmp_path):
    """NaN on rank 1 only: both leave the step out, and the log names the images of both."""
    answer = toy(2, tmp_path, "name=run", "max_epoch=1", "batch_size_train=1", fault="nan@2@1")
    assert answer.returncode == 0, answer.stderr
    lines = list(map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines()))
    (warning,) = [line["text"] for line in lines if line["event"] == "warning"]
    assert warning.startswith("step 2: loss or gradient not finite, left out; images [")
    assert warning.count("10") == 2
    assert all(torch.isfinite(tensor).all() for tensor in load_file_of(tmp_path).values())


def load_file_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "latest/checkpoints/last/model.safetensors")


@pytest.mark.long
def test_signal_to_one_process_stops_all_with_the_documented_code(tmp_path, whole):
    options = ("name=run", "accum_grad_iters=2", "batch_size_train=1", 'valid_splits=["val"]')
    answer = toy(2, tmp_path, *options, fault="term@3@1")
    assert answer.returncode != 0
    assert "exitcode  : 75" in answer.stderr
    assert "stopped by" in answer.stderr
    answer = toy(2, tmp_path, *options, "resume=auto")
    assert answer.returncode == 0, answer.stderr
    assert weights(tmp_path) == weights(whole)
