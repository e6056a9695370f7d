"""Files: written whole or not at all (temporary name, fsync, rename), locked, read with errors of one line."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bita.errors import UserError

TEMPORARY = ".tmp-"
"""Every unfinished file and folder starts its name with this."""


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path`; whoever reads meanwhile sees the old file or the new one."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Put `value` at `path` as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync(path: Path) -> None:
    """Returns once the content of a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


sync_folder = sync
"""Returns once the names in a folder are on the disk."""


def link(path: Path, target: str) -> None:
    """Make `path` a symbolic link to `target` (relative to its folder), replacing the link that is there."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)
    sync_folder(path.parent)


def sha256(path: Path) -> str:
    """Hexadecimal checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file: of all processes that ask for it, one at a time goes on."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def has_words(caption: str) -> bool:
    """Whether a caption says anything: RSICD, as published, has three that are only " ."."""
    return any(letter.isalnum() for letter in caption)


def load_json(path: Path) -> Any:
    """Read a JSON file; what is wrong with it is said in one line."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: file is missing") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON (line {error.lineno}: {error.msg})") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None


def field(record: Any, key: str, kind: type[Any], path: Path, where: str) -> Any:
    """Return ``record[key]``, which must be there and of type ``kind``."""
    if not isinstance(record, dict):
        raise UserError(f"{path}: {where}: wanted an object, found {type(record).__name__}")
    if key not in record:
        raise UserError(f"{path}: {where}: field {key!r} is missing")
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{path}: {where}: field {key!r} must be {kind.__name__}, not {type(value).__name__}")
    return value
