import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bita.checkpoint import (
    META_FILE,
    Meta,
    list_checkpoints,
    newest_complete,
    point,
    prune,
    resolve_checkpoint,
    unfinished,
    verify,
    write_checkpoint,
)
from bita.errors import UserError


def write(
    parent: Path, epoch: int, step: int | None = None, content: bytes = b"weights", steps: int = 10
) -> Path:
    step = steps if step is None else step
    meta = Meta(epoch=epoch, step_in_epoch=step, steps_per_epoch=steps, step=epoch * steps + step)
    return write_checkpoint(
        parent, meta, {"model.safetensors": lambda path: path.write_bytes(content) and None}
    )


def test_names_count_from_one_and_tell_where_inside_an_epoch(tmp_path):
    assert write(tmp_path, 3).name == "epoch_0004"
    assert write(tmp_path, 4, step=7).name == "epoch_0005_step_000007"
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["epoch_0005_step_000007", "epoch_0004"]


def test_written_checkpoint_verifies_and_leaves_nothing_else(tmp_path):
    folder = write(tmp_path, 0)
    assert verify(folder).files["model.safetensors"]["bytes"] == 7
    assert sorted(os.listdir(tmp_path)) == ["epoch_0001"]
    assert sorted(os.listdir(folder)) == [META_FILE, "model.safetensors"]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"weig"), "has 4 bytes instead of 7"),
        (lambda f: (f / "model.safetensors").write_bytes(b"weightz"), "checksum differs"),
        (lambda f: (f / "model.safetensors").unlink(), "is missing"),
        (lambda f: (f / META_FILE).unlink(), "was never finished"),
        (lambda f: (f / META_FILE).write_text('{"epoch"'), "damaged"),
    ],
)
def test_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, harm, message):
    before, damaged = write(tmp_path, 0), write(tmp_path, 1)
    harm(damaged)
    with pytest.raises(UserError, match=message):
        verify(damaged)
    warnings: list[str] = []
    assert newest_complete(tmp_path, warnings.append) == before
    assert len(warnings) == 1
    assert str(damaged) in warnings[0]


def test_manifest_may_not_leave_its_folder(tmp_path):
    folder = write(tmp_path / "checkpoints", 0)
    (tmp_path / "secret").write_text("x")
    meta = json.loads((folder / META_FILE).read_text())
    meta["files"]["../../secret"] = {"bytes": 1, "sha256": "0"}
    (folder / META_FILE).write_text(json.dumps(meta))
    with pytest.raises(UserError, match="outside its folder; refused"):
        verify(folder)


def test_failed_write_leaves_the_old_checkpoint_whole(tmp_path):
    old = write(tmp_path, 0)

    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_checkpoint(
            tmp_path,
            Meta(epoch=1, step_in_epoch=10, steps_per_epoch=10, step=20),
            {"model.safetensors": full},
        )
    assert os.listdir(tmp_path) == [old.name]
    verify(old)


def test_what_a_killed_write_left_is_removed_by_the_next(tmp_path):
    (tmp_path / ".tmp-epoch_0001").mkdir()
    (tmp_path / ".tmp-epoch_0001" / "model.safetensors").write_bytes(b"half")
    assert newest_complete(tmp_path) is None
    write(tmp_path, 1)
    assert os.listdir(tmp_path) == ["epoch_0002"]


def test_writing_the_same_place_again_replaces_it(tmp_path):
    write(tmp_path, 0, content=b"old")
    folder = write(tmp_path, 0, content=b"newer")
    assert (folder / "model.safetensors").read_bytes() == b"newer"
    assert os.listdir(tmp_path) == ["epoch_0001"]


def test_prune_keeps_the_last_and_the_best(tmp_path):
    for epoch in range(5):
        newest = write(tmp_path, epoch)
    prune(tmp_path, newest, keep_last=2, keep={"epoch_0002"})
    assert sorted(os.listdir(tmp_path)) == ["epoch_0002", "epoch_0004", "epoch_0005"]


def test_prune_keeps_what_was_just_written_and_goes_by_epochs_not_steps(tmp_path):
    """On twice the processes a later epoch has a lower step; a further one that resume passed over must go."""
    for epoch in range(3):
        write(tmp_path, epoch, steps=100)
    newest = write(tmp_path, 3, steps=50)
    prune(tmp_path, newest, keep_last=1, keep=set())
    assert os.listdir(tmp_path) == ["epoch_0004"]
    (write(tmp_path, 5, steps=50) / "model.safetensors").write_bytes(b"damaged")
    newest = write(tmp_path, 4, steps=50)
    prune(tmp_path, newest, keep_last=1, keep=set())
    assert os.listdir(tmp_path) == ["epoch_0005"]


def test_resolve_finds_best_then_last_from_every_level(tmp_path):
    checkpoints = tmp_path / "run_a" / "checkpoints"
    first, second = write(checkpoints, 0), write(checkpoints, 1)
    (tmp_path / "latest").symlink_to("run_a")
    assert resolve_checkpoint(tmp_path / "run_a") == second
    point(checkpoints, "last", second)
    assert resolve_checkpoint(tmp_path) == second
    point(checkpoints, "best", first)
    for path in (tmp_path, tmp_path / "run_a", checkpoints, checkpoints / "best", first):
        assert resolve_checkpoint(path) == first
    assert resolve_checkpoint(second) == second
    weights = second / "model.safetensors"
    assert resolve_checkpoint(str(weights)) == weights


def test_run_that_has_not_ended_is_said_to_be_so(tmp_path):
    write(tmp_path / "run_a/checkpoints", 1)
    assert unfinished(tmp_path / "run_a") is None  # nothing is known about it
    (tmp_path / "run_a/run.json").write_text("{}")
    assert (
        unfinished(tmp_path / "run_a")
        == f"{tmp_path}/run_a is not finished; epoch_0002 is taken, of ? epochs"
    )
    assert unfinished(tmp_path / "run_a/checkpoints/epoch_0002") is None  # asked for by name
    (tmp_path / "run_a/run.json").write_text('{"finished": "2026-01-01"}')
    assert unfinished(tmp_path / "run_a") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such file or folder"),
        ("empty", "holds no finished checkpoint"),
    ],
)
def test_resolve_says_in_one_line_what_it_looked_for(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message) as caught:
        resolve_checkpoint(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_importing_it_does_not_import_torch():
    code = "import sys, bita.checkpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
