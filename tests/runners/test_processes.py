"""Training in several real processes, under torchrun's elastic agent."""

import gc
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from toy_run import main

from bita.runners import parallel
from tests.two_processes import on_two

EXACT = ("name=run", "accum_grad_iters=2", "batch_size_train=1", 'valid_splits=["val"]')


def work(arguments: list[str], fault: str) -> None:
    gc.freeze()  # what the fork server holds is not this process's to look through
    torch.set_num_threads(1)
    os.environ["TOY_FAULT"] = fault
    code = main(arguments)
    if code:
        sys.exit(code)


@pytest.fixture
def toy(start_method):
    """Trains in so many processes."""

    def train(processes: int, out: Path, *options: str, restarts: int = 0, fault: str = "@-1@-1") -> None:
        if processes == 1:
            assert main([str(out), *options]) == 0
            return
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            start_method=start_method,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=out.name,
            max_restarts=restarts,
            monitor_interval=0.1,
        )
        elastic_launch(config, work)([str(out), *options], fault)

    return train


def weights(out: Path, name: str = "last") -> bytes:
    return (out / "latest/checkpoints" / name / "model.safetensors").read_bytes()


@pytest.fixture
def whole(tmp_path, toy):
    toy(2, tmp_path / "whole", *EXACT)
    return tmp_path / "whole"


def test_killed_process_is_restarted_and_nothing_is_lost(tmp_path, toy, whole):
    """Rank 1 is killed inside epoch 2; torchrun restarts both, which go on from the last save."""
    out = tmp_path / "killed"
    toy(2, out, *EXACT, "save_every_steps=2", restarts=1, fault="kill@9@1")
    assert weights(out) == weights(whole)
    lines = map(json.loads, (out / "run/log.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if line["event"] == "resumed"] == [8]
    assert (out / "run/validation.json").read_text() == (whole / "run/validation.json").read_text()


@pytest.mark.long
def test_killed_process_on_one_of_two_machines_restarts_both(tmp_path, whole):
    """Two launchers, which count their restarts each for itself, meet again; nothing is lost."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    out = tmp_path / "machines"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=x", "--max-restarts=3"]
    command += [str(Path(__file__).with_name("toy_run.py")), str(out), *EXACT, "save_every_steps=2"]
    variables = {
        "TOY_FAULT": "kill@9@1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
    }
    launchers = [subprocess.Popen(command, env=os.environ | variables) for _ in range(2)]
    assert [launcher.wait(timeout=1200) for launcher in launchers] == [0, 0]
    assert weights(out) == weights(whole)
    lines = map(json.loads, (out / "run/log.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if line["event"] == "resumed"] == [8]


def test_fault_of_one_process_is_every_processes(tmp_path, toy):
    """NaN on rank 1 only: both leave the step out, and the log names the images of both."""
    toy(2, tmp_path, "name=run", "max_epoch=1", "batch_size_train=1", fault="nan@2@1")
    lines = list(map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines()))
    (warning,) = [line["text"] for line in lines if line["event"] == "warning"]
    assert warning.startswith("step 2: loss or gradient not finite, left out; images toy train 10")
    assert warning.count(f" ({tmp_path}/images/train_") == 2
    assert all(torch.isfinite(tensor).all() for tensor in load_file_of(tmp_path).values())


def load_file_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "latest/checkpoints/last/model.safetensors")


def test_signal_to_one_process_stops_all_with_the_documented_code(tmp_path, toy, whole):
    out = tmp_path / "stopped"
    with pytest.raises(ChildFailedError) as caught:
        toy(2, out, *EXACT, fault="term@1@1")  # in step 2: all know of it after the next, 4
    assert 75 in {failure.exitcode for failure in caught.value.failures.values()}
    assert (out / "run/checkpoints/last").resolve().name == "epoch_0001_step_000004"
    toy(2, out, *EXACT, "resume=auto")
    assert weights(out) == weights(whole)


@pytest.mark.parametrize("frozen", [True, False])
def test_fsdp_equals_ddp_and_holds_half_of_the_decoder(tmp_path, toy, frozen):
    """Weights after the run, with accumulation, clipping and validation; a stopped run goes on byte by byte."""
    options = [*EXACT, f"model.freeze_lm={frozen}", "clip_grad_norm=0.5", "test_splits=['test']"]
    toy(2, tmp_path / "ddp", *options)
    toy(2, tmp_path / "fsdp", *options, "parallel=fsdp")
    expected, found = (load_file_of(tmp_path / kind) for kind in ("ddp", "fsdp"))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)
    for path in (tmp_path / "fsdp/held").iterdir():
        held, total = map(int, path.read_text().split())
        assert held <= 0.55 * total
    scores = [json.loads((tmp_path / kind / "run/scores.json").read_text()) for kind in ("ddp", "fsdp")]
    assert scores[0]["test"]["loss"] == pytest.approx(scores[1]["test"]["loss"], abs=1e-6)
    with pytest.raises(ChildFailedError):
        toy(2, tmp_path / "stopped", *options, "parallel=fsdp", fault="term@1@1")
    toy(2, tmp_path / "stopped", *options, "parallel=fsdp", "resume=auto")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "fsdp")


@pytest.mark.long
def test_deterministic_runs_in_other_processes_give_the_same_bytes(tmp_path, toy):
    for name in ("one", "two"):
        toy(2, tmp_path / name, "name=run", "deterministic=True", "model.arch=bita_former")
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


@pytest.mark.long
def test_captions_and_scores_do_not_depend_on_the_number_of_processes(tmp_path, toy):
    """Nor on whether the evaluation was stopped half-way and the run started again."""
    seen = []
    options = [
        "name=run",
        "max_epoch=0",
        "batch_size_eval=1",
        "task=captioning",
        'test_splits=["test", "val"]',
        "max_len=14",
        "min_len=9",
    ]
    with pytest.raises(ChildFailedError):
        toy(2, tmp_path / "stopped", *options, fault="evalterm@1@0")
    assert not (tmp_path / "stopped/run/scores.json").exists()
    for name, processes in (("stopped", 2), ("1", 1), ("2", 2), ("3", 3)):
        out = tmp_path / name
        toy(processes, out, *options, "resume=auto")
        files = ("results/test.json", "results/val.json", "scores.json")
        seen.append([json.loads((out / "run" / file).read_text()) for file in files])
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert [entry["image_id"] for entry in seen[0][1]] == [100, 101, 102, 103, 104]
    assert any(entry["caption"] for entry in seen[0][1])


def test_contrastive_training_equals_one_process_that_sees_the_whole_batch(tmp_path, toy):
    """Loss and gradient norm, with features gathered with gradient; then retrieval on the validation split."""
    options = [
        "name=run",
        "max_epoch=1",
        "log_freq=1",
        "model.arch=bita_former",
        "model.itc_gather_grad=True",
    ]
    options += ["model.bridge_size.dropout=0.0", 'valid_splits=["val"]']
    trained, validated = [], []
    for processes in (1, 2, 3):
        out = tmp_path / str(processes)
        toy(processes, out, *options, f"batch_size_train={6 // processes}")
        lines = list(map(json.loads, (out / "run/log.jsonl").read_text().splitlines()))
        first = next(line for line in lines if line["event"] == "train")
        trained.append([first["loss"], first["grad_norm"]])
        (scores,) = [line["scores"] for line in lines if line["event"] == "scores"]
        validated.append(scores["loss"])
    for other in (1, 2):
        assert trained[other] == pytest.approx(trained[0], rel=1e-4)
        assert validated[other] == pytest.approx(validated[0], rel=1e-2)


def seen_by(rank: int) -> dict[str, Tensor]:
    """Running means of a process after a step on images of its own: its own ones, and those that are evaluated with."""
    model = nn.Sequential(nn.BatchNorm2d(1))
    parallel.wrap(model, torch.device("cpu"))(torch.arange(8.0).reshape(2, 1, 2, 2) + 10 * rank)
    own = model[0].running_mean.clone()
    parallel.share_statistics(model)
    return {"own": own, "shared": model[0].running_mean}


def test_an_evaluation_is_of_the_statistics_that_are_saved(tmp_path, start_method):
    main_one, other = on_two(seen_by, (), tmp_path, start_method)
    assert main_one["own"] == main_one["shared"] == other["shared"] != other["own"]


def test_recalls_do_not_depend_on_the_number_of_processes(tmp_path, toy):
    options = ["name=run", "max_epoch=0", "model.arch=bita_former", 'test_splits=["test", "val"]']
    seen = []
    for processes in (1, 2):
        toy(processes, tmp_path / str(processes), *options, f"batch_size_eval={processes}")
        scores = json.loads((tmp_path / str(processes) / "run/scores.json").read_text())
        seen.append({split: {k: v for k, v in of.items() if "recall" in k} for split, of in scores.items()})
    assert seen[0] == seen[1]
    assert len(seen[0]["test"]) == 7
