"""Real faults: a full disk, a read-only folder, a pickle that would run code. What is lost, and what is said."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from toy_run import SIZE, toy_config, toy_dataset, toy_runner

from bita.checkpoint import resolve_checkpoint, verify
from bita.datasets import faults, features
from bita.datasets.cache import open_cache
from bita.datasets.features import Views, open_features
from bita.errors import UserError
from bita.runners.run_dir import open_run_dir
from bita.runners.state import read_trainer


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many bytes; unmounted afterwards."""
    mounted = []

    def mount(size: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        answer = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        )
        if answer.returncode != 0:
            pytest.skip("needs the right to mount a file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def warnings(run_dir: Path) -> list[str]:
    lines = map(json.loads, (run_dir / "log.jsonl").read_text().splitlines())
    return [line["text"] for line in lines if line["event"] == "warning"]


def test_full_disk_keeps_the_old_checkpoint_and_the_run_goes_on(tmp_path, small_disk, capsys):
    first = toy_runner(toy_config(tmp_path / "big", max_epoch=1), tmp_path / "images")
    first.train()
    (whole,) = (folder for folder in first.run_dir.checkpoints.glob("epoch_*"))
    size = sum(file.stat().st_size for file in whole.iterdir())
    disk = small_disk(int(2.6 * size))
    options = {
        "name": "run",
        "max_epoch": 4,
        "keep_last": 9,
        "valid_splits": ["val"],
        "test_splits": ["test"],
    }
    runner = toy_runner(toy_config(disk, **options), tmp_path / "images")
    scores = runner.train()
    assert scores["test"]["loss"] > 0
    last = (runner.run_dir.checkpoints / "last").resolve()
    assert last.name == "epoch_0002"
    verify(last)
    assert not list(runner.run_dir.checkpoints.glob(".tmp-*"))
    said = capsys.readouterr().out
    assert "checkpoint of step 18 not written" in said
    assert f"the last good checkpoint is {last}" in said


def test_shared_memory_is_asked_for_room_before_torch_is(small_disk, monkeypatch):
    monkeypatch.setattr(faults, "SHARED", str(small_disk(65536)))
    assert faults.Whereabouts(1000, str)._reading.shape == (1000, 2)
    opened = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError, match=r"^shared memory, which .* is full: make /dev/shm larger"):
        faults.Whereabouts(5000, str)  # 80 kB
    assert len(os.listdir("/proc/self/fd")) == opened


def test_a_cache_that_finds_no_room_is_one_line_and_leaves_nothing(tmp_path, small_disk, monkeypatch):
    """A sparse file would take the first write through memory that finds no room for the end of the process."""
    disk, data = small_disk(65536), toy_dataset(tmp_path / "images", images=30)
    with pytest.raises(
        UserError, match=r"cache cannot be written \(No space left on device\); set cache_images"
    ):
        open_cache(data.image_names, data.folder, data.opener, SIZE, disk)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 30}))
    with pytest.raises(UserError, match=r"cannot write 0.00 GB for 1 views .* \(No space left on device\)"):
        open_features(Views(data, 1, 0), lambda x: x.flatten(2), disk / "f.npy", batch_size=4, workers=0)
    assert [path.name for path in disk.iterdir() if path.stat().st_size > 100] == []


def test_read_only_output_folder_is_a_one_line_error(small_disk):
    disk = small_disk(1 << 20)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(
        UserError, match=r"run\.output_dir .*: cannot be written \(Read-only file system\)"
    ) as caught:
        open_run_dir(toy_config(disk / "output"))
    assert "\n" not in str(caught.value)


class Malicious:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (os.mkdir, (str(self.file),))


def test_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    evidence = tmp_path / "was_here"
    torch.save({"optimizer": Malicious(evidence)}, tmp_path / "trainer.pt")
    with pytest.raises(UserError, match=r"trainer\.pt: refused, since it holds more than data"):
        read_trainer(tmp_path / "trainer.pt")
    assert not evidence.exists()


def test_flipped_byte_is_noticed_and_the_checkpoint_named(tmp_path):
    runner = toy_runner(toy_config(tmp_path, name="run", max_epoch=1), tmp_path / "images")
    runner.train()
    checkpoint = resolve_checkpoint(runner.run_dir.path)
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged") as caught:
        toy_runner(toy_config(tmp_path, resume=str(checkpoint)), tmp_path / "images").train()
    assert str(checkpoint) in str(caught.value)


def test_deterministic_runs_give_the_same_bytes(tmp_path):
    ends = []
    try:
        for name in ("one", "two"):
            cfg = toy_config(tmp_path, name=name, deterministic=True, model__arch="bita_former", max_epoch=1)
            runner = toy_runner(cfg, tmp_path / "images")
            runner.train()
            assert torch.are_deterministic_algorithms_enabled()
            ends.append((runner.run_dir.checkpoints / "last/model.safetensors").read_bytes())
    finally:
        torch.use_deterministic_algorithms(False)
    assert ends[0] == ends[1]
