"""Broken images and dying loader workers: what is left out, what is listed, and what ends the run."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch
from toy_run import toy_config, toy_runner

from bita.config.run import RunConfig
from bita.datasets.captions import CaptionDataset
from bita.datasets.loaders import EvalLoader, TrainLoader
from bita.errors import UserError


def bomb() -> bytes:
    """A PNG of some hundred bytes that says it is 60000 × 60000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x" * 200) + chunk(b"IEND", b"")


HARM = {
    "zero bytes": (lambda path: path.write_bytes(b""), "image does not open"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-30]), "image does not open"),
    "missing": (lambda path: path.unlink(), "image is missing"),
    "decompression bomb": (lambda path: path.write_bytes(bomb()), "image is refused"),
}


def run(folder: Path, images: Path, **options):
    return toy_runner(toy_config(folder, name="run", max_epoch=1, log_freq=1, **options), images)


def bad_records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run/bad_records.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("harm", "problem"), HARM.values(), ids=HARM)
def test_bad_image_is_left_out_listed_once_and_replaced(tmp_path, harm, problem, capsys):
    options = {"on_bad_image": "skip", "max_bad_fraction": 0.2, "num_workers": 1}
    runner = run(tmp_path, tmp_path / "images", **options, valid_splits=["val"])
    for split in ("train", "val"):
        harm(tmp_path / f"images/{split}_1.png")
    runner.train()
    listed = bad_records(tmp_path)
    assert [(entry["dataset"], entry["split"]) for entry in listed] == [("toy", "train"), ("toy", "val")]
    assert listed[0]["image"] == str(tmp_path / "images/train_1.png")
    assert all(problem in entry["problem"] for entry in listed)
    said = capsys.readouterr().out
    assert (
        f"toy train: record {listed[0]['record']} left out: {tmp_path}/images/train_1.png: {problem}" in said
    )
    assert json.loads((tmp_path / "run/validation.json").read_text())["1"]["scores"]["val"]["loss"] > 0


@pytest.mark.parametrize(("harm", "problem"), HARM.values(), ids=HARM)
def test_bad_image_is_the_end_where_nothing_else_is_said(tmp_path, harm, problem):
    runner = run(tmp_path, tmp_path / "images")
    harm(tmp_path / "images/train_1.png")
    with pytest.raises(UserError, match=problem) as caught:
        runner.train()
    assert "train_1.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_bad_images_stop_the_run_and_the_list_is_named(tmp_path):
    runner = run(tmp_path, tmp_path / "images", on_bad_image="skip", max_bad_fraction=0.2)
    for number in (0, 3):
        (tmp_path / f"images/train_{number}.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"max_bad_fraction: 2 of 6 images of toy train do not open"
    ) as caught:
        runner.train()
    assert str(tmp_path / "run/bad_records.jsonl") in str(caught.value)
    assert len(bad_records(tmp_path)) == 2


def test_a_folder_that_is_gone_is_no_broken_image(tmp_path):
    runner = run(tmp_path, tmp_path / "images", on_bad_image="skip", max_bad_fraction=1.0)
    for path in (tmp_path / "images").glob("train_*.png"):
        path.unlink()
    with pytest.raises(UserError, match="image is missing; so do 19 others of toy train"):
        runner.train()


def loaded(loader) -> list:
    return [(batch["image_id"], batch["text"], batch["image"]) for batch in loader]


def test_replacement_depends_on_neither_workers_nor_ranks_nor_the_step_resumed_at(tmp_path):
    runner = run(tmp_path, tmp_path / "images")
    (tmp_path / "images/train_1.png").write_bytes(b"")
    (dataset,) = runner.datasets["train"]

    def load(workers: int = 0, start: int = 0, **place) -> list:
        size = 4 // place.get("world_size", 1)
        cfg = RunConfig(batch_size_train=size, num_workers=workers, on_bad_image="skip")
        loader = TrainLoader([dataset], cfg, **place)
        loader.set_epoch(1, start)
        return loaded(loader)

    whole = load()
    assert all(101 not in ids for ids, _, _ in whole)
    assert {len(ids) for ids, _, _ in whole} == {4}
    for other in (load(workers=2), load(start=1)):
        for (ids, texts, images), (ids2, texts2, images2) in zip(whole[-len(other) :], other, strict=True):
            assert (ids, texts) == (ids2, texts2)
            assert torch.equal(images, images2)
    halves = [load(rank=rank, world_size=2) for rank in (0, 1)]
    for (ids, _, _), (first, _, _), (second, _, _) in zip(whole, *halves, strict=True):
        assert ids == first + second


def test_evaluation_sees_every_image_once_a_bad_one_grey(tmp_path):
    runner = run(tmp_path, tmp_path / "images")
    (tmp_path / "images/val_2.png").write_bytes(b"")
    (dataset,) = runner.datasets["val"]
    loader = EvalLoader(dataset, RunConfig(num_workers=0, batch_size_eval=5, on_bad_image="skip"))
    ((ids, _, images),) = loaded(loader)
    assert ids == [100, 101, 102, 103, 104]
    assert images[2].abs().max() < 0.02  # the mean colour
    assert [record.image for record in loader.take_bad()] == [str(tmp_path / "images/val_2.png")]
    assert loader.take_bad() == []


class Deadly(CaptionDataset):
    """Reading its record 5 kills the worker."""

    def drawn(self, index, generator):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().drawn(index, generator)


def test_worker_that_dies_is_one_line_that_names_the_record(tmp_path):
    runner = run(tmp_path, tmp_path / "images", num_workers=2)
    runner.datasets["train"][0].__class__ = Deadly
    with pytest.raises(UserError, match=r"DataLoader worker .*, at toy train record 5 \(") as caught:
        runner.train()
    assert f"{tmp_path}/images/train_2.png" in str(caught.value)
    assert "lower run.num_workers" in str(caught.value)
    assert "\n" not in str(caught.value)


def in_small_shared_memory(kilobytes: int, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code as a program with so much of /dev/shm."""
    small = f"mount -t tmpfs -o size={kilobytes}k tmpfs /dev/shm && exec {sys.executable} -c '{code}'"
    return subprocess.run(
        ["unshare", "-rm", "bash", "-c", small],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_full_shared_memory_is_one_line_that_names_it(tmp_path):
    """A batch of 12 × 3 × 28 × 28 float32 has 113 kB."""
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("mounting needs rights that are not there")
    code = (
        "import sys, toy_run\n"
        'sys.exit(toy_run.main(["out", "num_workers=2", "batch_size_train=12", "max_epoch=1"]))'
    )
    done = in_small_shared_memory(64, code, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: shared memory, which loader workers hand images over in, is full: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in ("/dev/shm", "--shm-size", "run.num_workers"))


class Stuck(CaptionDataset):
    """Reading its record 5 takes for ever."""

    def drawn(self, index, generator):
        if index == 5:
            time.sleep(3600)
        return super().drawn(index, generator)


def test_worker_that_gives_nothing_is_one_line_that_names_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr("bita.datasets.faults.WORKER_WAIT", 3)
    runner = run(tmp_path, tmp_path / "images", num_workers=1)
    runner.datasets["train"][0].__class__ = Stuck
    with pytest.raises(
        UserError, match="DataLoader timed out after 3 seconds, at toy train record 5"
    ) as caught:
        runner.train()
    assert f"{tmp_path}/images/train_2.png" in str(caught.value)
