"""Finding a dataset's files in a folder or an archive (zip, tar)."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
from pathlib import Path

from bita.datasets.names import is_system_file
from bita.errors import UserError
from bita.files import open_to_others, write_text
from bita.magic import DAMAGED, HEAD, other_kind, packed

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_STAMP = ".unpacked"
_CHUNK = 1 << 20


def is_archive(path: Path) -> bool:
    """Return whether a file's name says that it is a zip or tar archive."""
    return path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIXES)


def unpack(archive: Path, target: Path) -> Path:
    """Unpack `archive` into the folder `target` unless that was done before; returns `target`.

    Raises:
        UserError: it is damaged, or no archive.
    """
    status = archive.stat()
    stamp = f"{archive.name} {status.st_size} {status.st_mtime_ns}\n"
    if (target / _STAMP).is_file() and (target / _STAMP).read_text() == stamp:
        return target
    temporary = target.with_name(f"{target.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        if _head(archive).startswith(b"PK"):
            with _open_zip(archive) as file:
                for info in file.infolist():
                    info.filename = info.filename.replace("\\", "/")  # as some Windows programs write them
                    if not is_system_file(info.filename):
                        file.extract(info, temporary)
        else:
            with tarfile.open(archive) as file:
                file.extractall(temporary, filter=_wanted)
                _read_to_end(file)
    except (*DAMAGED, zipfile.BadZipFile, RuntimeError, ValueError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{archive}: archive does not unpack ({_reason(archive, error)})") from None
    open_to_others(temporary)
    write_text(temporary / _STAMP, stamp)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    return target


def _read_to_end(archive: tarfile.TarFile) -> None:
    """Read what is left of an archive: at its end stands the checksum of what is packed; what comes after is none."""
    assert archive.fileobj is not None
    try:
        while archive.fileobj.read(_CHUNK):
            pass
    except gzip.BadGzipFile as error:
        if "Not a gzipped file" not in str(error):
            raise


def _head(archive: Path) -> bytes:
    with archive.open("rb") as file:
        return file.read(HEAD)


def _reason(archive: Path, error: Exception) -> str:
    """Return why an archive does not unpack: what it is instead, or what went wrong."""
    head = _head(archive)
    if head.startswith(b"PK") and not zipfile.is_zipfile(archive):
        return "the zip archive is cut off; fetch it again"
    kind = other_kind(head) if isinstance(error, tarfile.ReadError) and not packed(head) else None
    return f"it is {kind}" if kind else next(iter(str(error).splitlines()), type(error).__name__).rstrip(": ")


def _open_zip(archive: Path) -> zipfile.ZipFile:
    """A zip file; its names are UTF-8, as macOS has them without saying so, or else code page 437, as the form says."""
    try:
        return zipfile.ZipFile(archive, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        return zipfile.ZipFile(archive)


def _wanted(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Return the member as it may be unpacked, or None for what other systems keep for themselves."""
    return None if is_system_file(member.name) else tarfile.data_filter(member, folder)


def open_source(source: Path, out: Path) -> Path:
    """Return the folder with the published files: `source` itself, or `out/source` unpacked from it.

    Raises:
        UserError: it is missing, or neither a folder nor an archive.
    """
    if source.is_dir():
        return source
    if is_archive(source):
        return unpack(source, out / "source")
    if source.exists():
        raise UserError(f"{source}: neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)})")
    raise UserError(f"{source}: source is missing")


def find_file(folder: Path, name: str) -> Path:
    """Find the one file `name` in `folder` or up to two folders below.

    Raises:
        UserError: there is none, or more than one.
    """
    found = _below(folder, name, directories=False)
    if not found:
        raise UserError(f"{folder}: {name} is missing")
    if len(found) > 1:
        raise UserError(
            f"{folder}: {name} is there {len(found)} times ({found[0]}, {found[1]}); give its folder"
        )
    return found[0]


def find_images(folder: Path, name: str, out: Path) -> Path:
    """Find the folder `name` in `folder` or up to two below; an archive of that name is unpacked.

    Raises:
        UserError: there is neither, or more than one folder.
    """
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
    """Matches of `name` at the first level, 0 to 2 folders down, that has any."""
    for prefix in ("", "*/", "*/*/"):
        found = [
            path
            for path in sorted(folder.glob(prefix + name))
            if not is_system_file(str(path.relative_to(folder)))
            and (path.is_dir() if directories else path.is_file())
        ]
        if found:
            return found
    return []
