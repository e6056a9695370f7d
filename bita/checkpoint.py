"""Checkpoint folders: written whole or not at all, checked before use, found again.

A checkpoint is a folder `epoch_0004` (after epoch 4), or `epoch_0004_step_000120` (inside epoch 4), with

    model.safetensors   trained weights, and whatever no external file holds
    trainer.pt          optimizer, scaler, position
    meta.json           position, configuration, size and sha256 of the other files; written last

Nothing here needs torch, so that a wrong path is answered at once.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bita.errors import UserError
from bita.files import TEMPORARY, link, open_to_others, sha256, sync, user_path, write_json
from bita.machine import start_program
from bita.magic import is_shard_index, why_not_weights

MODEL_FILE = "model.safetensors"
TRAINER_FILE = "trainer.pt"
META_FILE = "meta.json"
FORMAT = 2
"""Of what `meta.json` says; it rises when a key of the configuration goes, moves or is renamed. Format 1 says none."""
INDEX_SUFFIX = ".index.json"
"""Ends the name of a file that says in which shard each tensor is."""
FOLDER_FILES = tuple(
    f"{name}{suffix}"
    for name in (
        MODEL_FILE,
        "pytorch_model.bin",
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.bin",
    )
    for suffix in ("", INDEX_SUFFIX)
)
"""What a folder of weights may hold, in the order of preference."""

Writer = Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What `meta.json` says.

    Attributes:
        epoch: epoch that the checkpoint lies in, from 0.
        step_in_epoch: steps of that epoch that are done.
        steps_per_epoch: steps that an epoch has.
        step: steps done since the start of the run.
        best: best validation so far: {"epoch", "score"}, or nothing.
        config: the resolved configuration.
        files: name → {"bytes", "sha256"}.
        outside: what no checkpoint holds, by content (`bita.weights.outside`); None where that was not noted yet.
        format: `FORMAT` of the version that wrote it.
    """

    epoch: int
    step_in_epoch: int
    steps_per_epoch: int
    step: int
    best: dict[str, float] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    outside: dict[str, dict[str, Any]] | None = None
    format: int = FORMAT

    @property
    def name(self) -> str:
        """Name of the checkpoint's folder; epochs count from 1 there."""
        name = f"epoch_{self.epoch + 1:04d}"
        return name if self.epoch_done else f"{name}_step_{self.step_in_epoch:06d}"

    @property
    def progress(self) -> float:
        """Epochs done, which other than steps do not depend on the number of processes."""
        return self.epoch + self.step_in_epoch / self.steps_per_epoch

    @property
    def epoch_done(self) -> bool:
        """Whether the epoch's last step is in it."""
        return self.step_in_epoch == self.steps_per_epoch


def write_checkpoint(parent: Path, meta: Meta, writers: Mapping[str, Writer]) -> Path:
    """Write a checkpoint folder under `parent` and return it.

    Args:
        parent: the run's `checkpoints` folder.
        meta: everything but `files`.
        writers: file name → function that writes the file at the path it is given.

    Raises:
        OSError: disk full or not writable; what was there before is untouched.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(parent)
    temporary = parent / f"{TEMPORARY}{meta.name}"
    try:
        temporary.mkdir()
        for name, write in writers.items():
            write(temporary / name)
            sync(temporary / name)
            meta.files[name] = {
                "bytes": (temporary / name).stat().st_size,
                "sha256": sha256(temporary / name),
            }
        open_to_others(temporary)
        write_json(temporary / META_FILE, asdict(meta))
        final = parent / meta.name
        if final.exists():
            final.rename(parent / f"{TEMPORARY}old-{meta.name}")
        temporary.rename(final)
        sync(parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(parent / f"{TEMPORARY}old-{meta.name}", ignore_errors=True)
    return final


def remove_unfinished(parent: Path) -> None:
    """Delete what an interrupted write left under a run's `checkpoints` folder."""
    for left in parent.glob(f"{TEMPORARY}*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def folder_of(checkpoint: Path) -> Path:
    """Return the folder of what `resolve_checkpoint` gave: itself, or the one that a file of weights lies in."""
    return checkpoint.parent if checkpoint.is_file() else checkpoint


def read_meta(folder: Path) -> Meta:
    """Return what a checkpoint's `meta.json` says.

    Raises:
        UserError: it is missing, unreadable, or names files outside the folder.
    """
    path = folder / META_FILE
    try:
        content = {"format": 1} | json.loads(path.read_text(encoding="utf-8"))
        if content["format"] > FORMAT:  # what a newer version says besides is not needed to read the weights
            content = {entry.name: content[entry.name] for entry in fields(Meta) if entry.name in content}
        meta = Meta(**content)
        entries = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in meta.files.items()}
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {folder}: has no {META_FILE}, so it was never finished") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"checkpoint {folder}: {META_FILE} is damaged; use another checkpoint") from error
    for name in entries:
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise UserError(f"checkpoint {folder}: {META_FILE} names {name!r}, outside its folder; refused")
    return meta


def verify(folder: Path) -> Meta:
    """Check every size and checksum of a checkpoint and return its meta.

    Raises:
        UserError: naming the file that is missing, cut off or altered.
    """
    meta = read_meta(folder)
    for name, entry in meta.files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"checkpoint {folder}: {name} is missing; use another checkpoint")
        if path.stat().st_size != entry["bytes"]:
            raise UserError(
                f"checkpoint {folder}: {name} has {path.stat().st_size} bytes instead of {entry['bytes']}; "
                "use another checkpoint"
            )
        if sha256(path) != entry["sha256"]:
            raise UserError(
                f"checkpoint {folder}: {name} is damaged (its checksum differs); use another checkpoint"
            )
    return meta


def list_checkpoints(parent: Path) -> list[Path]:
    """Checkpoint folders with a readable meta, the furthest trained first."""
    found = []
    for folder in parent.glob("epoch_*"):
        try:
            found.append((read_meta(folder).progress, folder))
        except UserError:
            continue
    return [folder for _, folder in sorted(found, reverse=True)]


def newest_complete(parent: Path, warn: Callable[[str], None] = lambda message: None) -> Path | None:
    """Return the furthest trained checkpoint whose files are all whole; `warn` is told why others were passed over."""
    for folder in sorted(parent.glob("epoch_*")):
        try:
            read_meta(folder)
        except UserError as error:
            warn(str(error))
    for folder in list_checkpoints(parent):
        try:
            verify(folder)
        except UserError as error:
            warn(str(error))
            continue
        return folder
    return None


def prune(parent: Path, newest: Path, keep_last: int, keep: set[str]) -> None:
    """Delete all but the `keep_last` furthest trained checkpoints up to `newest`, and those named in `keep`.

    Further ones than the newest are those that the run, when it was resumed, passed over as damaged.
    """
    folders = list_checkpoints(parent)
    place = folders.index(newest)
    kept = {folder.name for folder in folders[place : place + max(keep_last, 1)]} | keep
    for folder in folders:
        if folder.name not in kept:
            doomed = folder.rename(parent / f"{TEMPORARY}old-{folder.name}")
            shutil.rmtree(doomed, ignore_errors=True)


def copy_checkpoint(folder: Path, parent: Path) -> None:
    """Put a checkpoint of another run among those of this one, as hard links where the disk is the same.

    Raises:
        UserError: it is damaged.
        OSError: it cannot be written.
    """
    verify(folder)
    if (parent / folder.name).exists():
        return
    parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(parent)
    temporary = parent / f"{TEMPORARY}{folder.name}"
    shutil.copytree(folder, temporary, copy_function=_link_or_copy)
    temporary.rename(parent / folder.name)
    sync(parent)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync(Path(target))


def point(parent: Path, name: str, checkpoint: Path) -> None:
    """Make the link `name` (`best` or `last`) lead to a checkpoint beside it."""
    link(parent / name, checkpoint.name)


def unfinished(path: str | Path) -> str | None:
    """Return one line where `path` names a run that has not ended, so that a checkpoint on its way is all there is."""
    start = Path(path)
    if start.is_file() or (start / META_FILE).is_file():
        return None
    checkpoint = resolve_checkpoint(start)
    run = checkpoint.parent.parent
    try:
        ended = "finished" in json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if ended:
        return None
    meta = read_meta(checkpoint)
    epochs = meta.config.get("run", {}).get("max_epoch", "?")
    return f"{run} is not finished; {checkpoint.name} is taken, of {epochs} epochs"


def split_choice(source: str) -> tuple[str, str | None]:
    """`FILE#NAME` → the file, and which of the weights in it; a `#` may also be part of a path, or begin a hash."""
    head, hash_sign, name = source.rpartition("#")
    if not hash_sign or not name or "=" in name or "/" in name or Path(source).exists():
        return source, None
    return head, name


def weights_problem(path: Path) -> str | None:
    """Return why a file or folder cannot be read as weights, as far as its first bytes tell; None where it may be."""
    if not path.exists() and not path.is_symlink():
        return "no such file or folder"
    if path.is_dir():
        path = next((path / name for name in FOLDER_FILES if (path / name).is_file()), path)
    reason = None if path.is_file() and is_shard_index(path) else why_not_weights(path)
    return None if reason is None else f"not a weights file, but {reason}"


def resolve_checkpoint(path: str | Path) -> Path:
    """From what a user names to what can be loaded: a checkpoint folder or a file of weights.

    Args:
        path: a weights file, or an index of shards; a checkpoint folder; a run's folder or its `checkpoints` (the
            best one, else the last); a folder of runs with its `latest` link; a folder of weights alone.

    Raises:
        UserError: nothing of the kind is there; the message says what was looked for.
    """
    start = Path(path)
    if start.is_file():
        return start
    if not start.exists():
        raise UserError(f"checkpoint {start}: no such file or folder")
    if (start / META_FILE).is_file():
        return start.resolve()
    for parent in (start / "latest" / "checkpoints", start / "checkpoints", start):
        for name in ("best", "last"):
            if (parent / name / META_FILE).is_file():
                return (parent / name).resolve()
        newest = newest_complete(parent) if parent.is_dir() else None
        if newest is not None:
            return newest.resolve()
    if any((start / name).is_file() for name in FOLDER_FILES):
        return start.resolve()
    raise UserError(
        f"checkpoint {start}: holds no finished checkpoint (looked for {META_FILE} in it, then for best and last "
        f"in it, in checkpoints/ and in latest/checkpoints/)"
    )


def start_with(run: str | Path) -> None:
    """Start a program that loads a run as a user names it: a mistake is told before torch is imported.

    Raises:
        UserError: see `resolve_checkpoint`.
    """
    resolve_checkpoint(user_path(run))
    start_program()
