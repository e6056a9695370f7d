"""Files that are written: whole or not at all, and as open to others as the umask says; locks."""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bita import files
from bita.errors import UserError
from bita.files import link, open_to_others, write_json, write_text


@contextmanager
def umask(value: int) -> Iterator[None]:
    """The process's umask, for a while."""
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> set[int]:
    """Permissions of every file below a folder."""
    return {stat.S_IMODE(file.stat().st_mode) for file in folder.rglob("*") if file.is_file()}


MASKS = pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])


@MASKS
def test_the_umask_decides_whatever_a_file_had_before(tmp_path: Path, mask: int, mode: int) -> None:
    with umask(mask):
        (tmp_path / "below").mkdir()
        for name, before in (("private", 0o600), ("below/open", 0o666), ("below/runs", 0o755)):
            (tmp_path / name).write_text("x")
            (tmp_path / name).chmod(before)
        outside = tmp_path.parent / f"{tmp_path.name}_outside"
        outside.touch(0o600)
        (tmp_path / "link").symlink_to(outside)
        open_to_others(tmp_path)
        assert modes(tmp_path / "below") == {mode}
        assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == mode
        assert stat.S_IMODE(outside.stat().st_mode) == 0o600  # a link's target is not ours
        (tmp_path / "private").chmod(0o600)
        open_to_others(tmp_path / "private")
        assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == mode
        assert sorted(file.name for file in tmp_path.iterdir()) == ["below", "link", "private"]


@MASKS
def test_text_and_json_follow_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    with umask(mask):
        write_text(tmp_path / "a.txt", "a")
        write_json(tmp_path / "b.json", {"b": 1})
        write_text(tmp_path / "a.txt", "again")
        link(tmp_path / "latest", "a.txt")
        assert modes(tmp_path) == {mode}
        assert (tmp_path / "latest").read_text() == "again"


def test_what_cannot_be_written_is_named_as_it_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path, error in (
        (tmp_path / "gone/a.txt", FileNotFoundError),
        (tmp_path / "folder", IsADirectoryError),
    ):
        with pytest.raises(error) as caught:
            write_text(path, "a")
        assert (caught.value.filename, caught.value.filename2) == (str(path), None)


def test_who_waits_for_a_lock_says_for_whom_and_gives_up(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(files, "LOCK_SAID", 0.05)
    monkeypatch.setattr(files, "LOCK_LIMIT", 0.3)
    lock = tmp_path / ".lock"
    holder = f"process {os.getpid()} on {platform.node()}"
    refused = pytest.raises(UserError, match=f"{lock}: {holder} has held this lock for 0 s; ")
    with files.exclusive(lock), refused, files.exclusive(lock):
        pass
    assert caplog.messages == [f"waiting for {holder}, which holds {lock}"]
    with files.exclusive(lock):
        pass
