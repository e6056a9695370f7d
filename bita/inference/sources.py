"""Which images a command line names: files, folders, patterns, and a list on standard input."""

from __future__ import annotations

import codecs
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from bita.errors import UserError
from bita.files import sha256, user_path
from bita.processors.rgb import IMAGE_SUFFIXES, ImageOpener

STDIN = "-"
"""Stands for the names on standard input, one a line, or parted by NUL characters."""


class ImageFile:
    """An image file that is known by its content once it was opened.

    Attributes:
        path: as it was named.
        sha256: of the file; empty where it cannot be read, and before it was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.sha256 = path, ""

    def open_with(self, opener: ImageOpener) -> Image.Image:
        """Open it in any thread; raises UserError as `ImageOpener.open` does."""
        self.sha256 = content_hash(self.path)
        return opener.open(self.path)


def content_hash(path: Path) -> str:
    """Return a file's sha256, or nothing where it cannot be read."""
    try:
        return sha256(path)
    except OSError:
        return ""


def find_images(given: Sequence[str]) -> list[Path]:
    """The image files that arguments name, in their order; those of a folder and of a pattern by name.

    Args:
        given: files; folders, in which files that are named like images are looked for at any depth; patterns with `*`,
            `?`, `[…]` and `**`; `-` for a list on standard input, whose files need not be there.

    Raises:
        UserError: an argument is nothing of these, or finds nothing.
    """
    found: list[Path] = []
    for argument in given:
        found += _listed() if argument == STDIN else _named(argument)
    return found


def names_several(argument: str) -> bool:
    """Whether an argument is a folder, a pattern or `-`, whose files are looked for; else it is a file's own name."""
    path = user_path(argument)
    return argument == STDIN or path.is_dir() or (glob.has_magic(str(path)) and not path.exists())


def _named(argument: str) -> list[Path]:
    path = user_path(argument)
    if path.is_dir():
        return _inside(path)
    if path.exists():
        return [path]
    if not glob.has_magic(str(path)):
        raise UserError(f"image {path}: no such file")
    matches = sorted(glob.glob(str(path), recursive=True))
    if not matches:
        raise UserError(f"image {path}: no file matches this pattern")
    files = [Path(match) for match in matches]
    return [image for file in files for image in (_inside(file, may_lack=True) if file.is_dir() else [file])]


def _inside(folder: Path, may_lack: bool = False) -> list[Path]:
    """Return the files below a folder that are named like images, hidden ones left out."""

    def walk() -> Iterator[Path]:
        for parent, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES):
                    yield Path(parent, name)

    found = sorted(walk())
    if not found and not may_lack:
        raise UserError(
            f"{folder}: no image in this folder or below (looked for {', '.join(IMAGE_SUFFIXES)})"
        )
    return found


def _listed() -> list[Path]:
    """Return the files that standard input names."""
    content = sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8)  # as some editors write it
    names = content.split(b"\0") if b"\0" in content else content.splitlines()
    found = [Path(os.fsdecode(name)) for name in names if name.strip()]
    if not found:
        raise UserError("standard input names no image")
    return found
