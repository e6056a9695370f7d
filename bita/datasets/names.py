"""Names of files: images found however an annotation spells them; what other systems leave beside files told apart."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from bita.processors.rgb import IMAGE_SUFFIXES

_SYSTEM = {
    "__macosx",
    ".ds_store",
    ".appledouble",
    ".spotlight-v100",
    ".trashes",
    ".fseventsd",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "@eadir",
}


def is_system_file(name: str) -> bool:
    """Return whether a path is, or lies in, what a file system of macOS, Windows or a NAS keeps for itself."""
    return any(part.startswith("._") or part.lower() in _SYSTEM for part in re.split(r"[/\\]", name))


def plain(name: str) -> str:
    """Return a name without what systems change about it: case, Unicode normal form, blanks at its ends."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


class ImageFolder:
    """The files of an image folder, found by the names that an annotation file gives them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings: dict[str, tuple[dict[str, list[str]], dict[str, list[str]]]] = {}

    def find(self, name: str) -> list[str]:
        r"""Return the names below the folder of the files that `name` can mean: several where that is not clear.

        That is the file of this very name; where it is not there, those that differ in case, in Unicode normal form, in
        separators (`a\b.jpg`), in blanks at an end; and where there are none, those with an image suffix that the name
        has not (`1.tif` or `1` listed, `1.jpg` there).
        """
        exact = name if name.startswith("/") else "/".join(p for p in name.split("/") if p not in ("", "."))
        if os.path.isfile(self.root / exact):
            return [exact]
        *folders, leaf = [part for part in re.split(r"[/\\]", name) if part.strip() not in ("", ".")] or [""]
        places = [""]
        for part in folders:
            places = [f"{place}{fit}/" for place in places for fit in _fits(part, self._listing(place)[0])]
        return [f"{place}{fit}" for place in places for fit in self._images(place, leaf)]

    def path(self, name: str) -> Path:
        """Return the file that `name` means, as well as that can be told; it need not be there."""
        return self.root / (self.find(name) or [name])[0]

    def _images(self, folder: str, leaf: str) -> list[str]:
        files = self._listing(folder)[1]
        fits = _fits(leaf, files)
        if fits:
            return fits
        stem, suffix = os.path.splitext(plain(leaf))
        stems = [plain(leaf), *([stem] if suffix in IMAGE_SUFFIXES else [])]
        return [fit for wanted in stems for end in IMAGE_SUFFIXES for fit in files.get(f"{wanted}{end}", [])]

    def _listing(self, folder: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Plain name → names, of the folders and of the files in a folder, which ends in "/" or is ""."""
        if folder not in self._listings:
            listing: tuple[dict[str, list[str]], dict[str, list[str]]] = {}, {}
            path = self.root / folder
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name) if path.is_dir() else []:
                if not is_system_file(entry.name):
                    listing[_is_file(entry)].setdefault(plain(entry.name), []).append(entry.name)
            self._listings[folder] = listing
        return self._listings[folder]


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry of a folder is a file; a link that leads to itself is none."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _fits(name: str, listing: dict[str, list[str]]) -> list[str]:
    """Return the names of a listing that `name` can mean: itself, or those that are plainly the same."""
    fits = listing.get(plain(name), [])
    return [name] if name in fits else fits
