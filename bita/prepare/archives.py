"""Finding a dataset's files in a folder or an archive (zip, tar), and image files under changed suffixes."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path

from bita.errors import UserError
from bita.files import write_text
from bita.processors.rgb import IMAGE_SUFFIXES

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_STAMP = ".unpacked"


def is_archive(path: Path) -> bool:
    """Whether a file's name says that it is a zip or tar archive."""
    return path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIXES)


def unpack(archive: Path, target: Path) -> Path:
    """Unpack ``archive`` into the folder ``target`` unless that was done before; returns ``target``."""
    status = archive.stat()
    stamp = f"{archive.name} {status.st_size} {status.st_mtime_ns}\n"
    if (target / _STAMP).is_file() and (target / _STAMP).read_text() == stamp:
        return target
    temporary = target.with_name(f"{target.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as file:
                file.extractall(temporary)
        else:
            with tarfile.open(archive) as file:
                file.extractall(temporary, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{archive}: archive does not unpack ({' '.join(str(error).split())})") from None
    write_text(temporary / _STAMP, stamp)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    return target


def open_source(source: Path, out: Path) -> Path:
    """Return the folder with the published files: ``source`` itself, or ``out/source`` unpacked from it."""
    if source.is_dir():
        return source
    if is_archive(source):
        return unpack(source, out / "source")
    if source.exists():
        raise UserError(f"{source}: neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)})")
    raise UserError(f"{source}: source is missing")


def find_file(folder: Path, name: str) -> Path:
    """Find the one file ``name`` in ``folder`` or up to two folders below."""
    found = _below(folder, name, directories=False)
    if not found:
        raise UserError(f"{folder}: {name} is missing")
    if len(found) > 1:
        raise UserError(
            f"{folder}: {name} is there {len(found)} times ({found[0]}, {found[1]}); give its folder"
        )
    return found[0]


def find_images(folder: Path, name: str, out: Path) -> Path:
    """Find the folder ``name`` in ``folder`` or up to two below; an archive of that name is unpacked."""
    found = _below(folder, name, directories=True)
    if len(found) > 1:
        raise UserError(
            f"{folder}: {name}/ is there {len(found)} times ({found[0]}, {found[1]}); give its folder"
        )
    if found:
        return found[0]
    archives = [
        path for suffix in ARCHIVE_SUFFIXES for path in _below(folder, name + suffix, directories=False)
    ]
    if archives:
        unpacked = unpack(archives[0], out / "source_images")
        inside = _below(unpacked, name, directories=True)
        return inside[0] if inside else unpacked
    raise UserError(
        f"{folder}: image folder {name}/ is missing (no {name}.zip or .tar either); put the images there"
    )


def _below(folder: Path, name: str, *, directories: bool) -> list[Path]:
    """Matches of ``name`` at the first level, 0 to 2 folders down, that has any."""
    for prefix in ("", "*/", "*/*/"):
        found = [
            path
            for path in sorted(folder.glob(prefix + name))
            if "__MACOSX" not in path.parts and (path.is_dir() if directories else path.is_file())
        ]
        if found:
            return found
    return []


class ImageFolder:
    """The files of an image folder, found by the names that an annotation file gives them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings: dict[str, dict[str, str]] = {}

    def find(self, name: str) -> str | None:
        """Return the name below the folder of the file listed as ``name``, or None.

        A file with another case or another image suffix (``1.tif`` listed, ``1.jpg`` there) is taken where the
        listed one is not there and exactly one other fits.
        """
        folder, _, leaf = name.rpartition("/")
        listing = self._listing(folder)
        if listing.get(leaf) == leaf:
            return name
        stem, dot, _ = leaf.lower().rpartition(".")
        wanted = stem if dot else leaf.lower()
        fits = [listing[f"{wanted}{suffix}"] for suffix in IMAGE_SUFFIXES if f"{wanted}{suffix}" in listing]
        if len(fits) != 1:
            return None
        return f"{folder}/{fits[0]}" if folder else fits[0]

    def _listing(self, folder: str) -> dict[str, str]:
        """Names in one folder, keyed by themselves and by their lower case."""
        if folder not in self._listings:
            path = self.root / folder
            names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
            self._listings[folder] = {name.lower(): name for name in sorted(names)} | {
                name: name for name in names
            }
        return self._listings[folder]
