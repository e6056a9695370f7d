"""Files: written whole or not at all (temporary name, fsync, rename), locked."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import platform
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bita.errors import UserError, first_line

LOG = logging.getLogger(__name__)
LOCK_SAID, LOCK_LIMIT = 10.0, 4 * 3600.0
"""Seconds after which who waits for a lock says so, and after which it ends: a slow download takes hours."""
TEMPORARY = ".tmp-"
"""Every unfinished file and folder starts its name with this."""


def expand(path: str) -> str:
    """A path as typed, `~` and variables of the environment put in; any other `$` stays, and so does an address."""
    return path if "://" in path else os.path.expanduser(os.path.expandvars(path))


def in_utf8(text: str) -> bool:
    """Whether a text can be written at all: no half of a surrogate pair, which stands for a byte of a name, too."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def user_path(path: str | Path) -> Path:
    """Return a path that a user typed, as `expand` reads it."""
    return Path(expand(str(path)))


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let what the system refuses, as on a full disk, name this file: a write to an open one names none."""
    try:
        yield
    except OSError as error:
        said = error.strerror or first_line(error)  # some libraries say all in one text
        raise OSError(error.errno or errno.EIO, said, str(path)) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path of a new file or link, which takes the place of `path` once it is whole; nothing is left of a part."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        with naming(path):  # the temporary name means nothing to users
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path`; whoever reads meanwhile sees the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Put `value` at `path` as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync(path: Path) -> None:
    """Return once the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link(path: Path, target: str) -> None:
    """Make `path` a symbolic link to `target` (relative to its folder), replacing the link that is there."""
    with replacing(path) as temporary:
        temporary.symlink_to(target)
    sync(path.parent)


def open_to_others(path: Path) -> None:
    """Give a file, or every file below a folder, the mode that the umask gives to a new one.

    Some libraries write through a private temporary file, and some archives bring modes of their own.
    """
    probe = (path if path.is_dir() else path.parent) / f"{TEMPORARY}mode-{os.getpid()}"
    try:
        probe.touch()
        mode = stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


def sha256(path: Path) -> str:
    """Hexadecimal checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file: of all processes that ask for it, one at a time goes on; who waits for long says for whom.

    Raises:
        UserError: another process held it for `LOCK_LIMIT` seconds.
    """
    with path.open("a+") as file:
        _lock(file.fileno(), path)
        with contextlib.suppress(OSError):  # a full disk is not this function's to tell
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
        yield


def _lock(file: int, path: Path) -> None:
    started, said = time.monotonic(), False
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - started
        holder = os.pread(file, 200, 0).decode(errors="replace") or "another process"
        if waited > LOCK_LIMIT:
            raise UserError(
                f"{path}: {holder} has held this lock for {LOCK_LIMIT:.0f} s; see what it does, or end it"
            )
        if waited > LOCK_SAID and not said:
            LOG.warning("waiting for %s, which holds %s", holder, path)
            said = True
        time.sleep(min(0.5, 0.01 + waited / 10))
