"""The folder of one run: never shared by two, found again after a fault, with all that is needed to repeat it.

OUTPUT_DIR/latest → NAME
OUTPUT_DIR/NAME/config.yaml  run.json  log.jsonl  tensorboard/  checkpoints/  results/  scores.json
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import secrets
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from bita import distributed
from bita.checkpoint import META_FILE
from bita.config.checks import AUTO
from bita.config.load import config_to_yaml
from bita.config.schema import Config
from bita.errors import UserError
from bita.files import link, write_json, write_text
from bita.runners import resume

LOG = logging.getLogger(__name__)
PACKAGES = (
    "bita",
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "numpy",
    "pillow",
    "safetensors",
    "pycocoevalcap",
)
RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
LOCK_FILE = ".lock"
LOCK_WAIT = 60.0
"""Seconds that a run waits for the processes of its interrupted predecessor to be gone."""


@dataclass
class RunDir:
    """An open run folder; the main process holds its lock until it ends."""

    path: Path
    lock: IO[str] | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def results(self) -> Path:
        """Folder of the predictions."""
        return self.path / "results"

    def about(self) -> dict[str, Any]:
        """Return what `run.json` says."""
        return _read_run_file(self.path)

    def finish(self) -> None:
        """Note that the run is complete, so that `run.resume=auto` does not take it up again."""
        if distributed.is_main():
            update_run_file(self.path, finished=_now())


def open_run_dir(cfg: Config) -> RunDir:
    """Create the folder of a new run, or take up the one that `run.resume=auto` means.

    With a name, `auto` means the run of that name; without one, the run that `latest` leads to, unless it is
    finished, or still running after a minute. Every process calls this; the main one acts, the others learn the path.

    Raises:
        UserError: the name is taken, is in use by another process, or the folder cannot be written.
    """
    locks: list[IO[str]] = []
    # Only the machine whose process failed counts a restart: of two, the other's processes start anew with 0.
    count = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    restarted = distributed.highest(count) > 0

    def act() -> Path:
        try:
            path, lock = _open(cfg, restarted)
        except OSError as error:
            raise UserError(
                f"run.output_dir {cfg.run.output_dir}: cannot be written ({error.strerror})"
            ) from error
        locks.append(lock)
        return path

    path = distributed.on_main(act)
    return RunDir(path, locks[0] if locks else None)


def finished_run(cfg: Config) -> Path | None:
    """Return the run that `latest` leads to, or that has the configuration's name, where it is finished and this very
    configuration is its own; else None."""
    path = (Path(cfg.run.output_dir) / (cfg.run.name or "latest")).resolve()
    try:
        same = (path / CONFIG_FILE).read_text(encoding="utf-8") == config_to_yaml(cfg)
    except OSError:
        return None
    return path if same and _read_run_file(path).get("finished") else None


def _open(cfg: Config, restarted: bool) -> tuple[Path, IO[str]]:
    output_dir = Path(cfg.run.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"run.output_dir {output_dir}: is a file; name a folder")
    output_dir.mkdir(parents=True, exist_ok=True)
    taken_up = _to_take_up(cfg, output_dir, restarted)
    if taken_up is not None:
        path, lock = taken_up
        before = (_read_run_file(path) if _has_checkpoint(path) else {}) or describe(cfg)
        taken = {"taken_up": [*before.get("taken_up", []), _now()], "launch": _launch()}
        write_json(path / RUN_FILE, before | taken)
    else:
        path = _create(cfg, output_dir)
        new_lock = _lock(path)
        assert new_lock is not None
        lock = new_lock
        write_json(path / RUN_FILE, describe(cfg))
    write_text(path / CONFIG_FILE, config_to_yaml(cfg))
    link(output_dir / "latest", path.name)
    return path, lock


def _to_take_up(cfg: Config, output_dir: Path, restarted: bool) -> tuple[Path, IO[str]] | None:
    """Return the folder of an earlier run and its lock, where this run goes on in one.

    On request (`run.resume=auto`), or because torchrun restarted this process: then in the folder that this very
    launch had, whatever else was started in the same place since.
    """
    launch = _launch()
    own = _newest_of_launch(output_dir, launch) if restarted and launch is not None else None
    asked = cfg.run.resume == AUTO or (restarted and launch is None)
    if own is None and not asked:
        return None
    named = cfg.run.name is not None
    path = own or output_dir / (cfg.run.name or "latest")
    if not path.exists():
        return None
    path = path.resolve()
    if not named and _read_run_file(path).get("finished"):
        return None
    lock = _lock(path, wait=LOCK_WAIT)
    if lock is not None:
        if _has_checkpoint(path):
            resume.refuse_another_run(path, path / CONFIG_FILE, cfg)
        return path, lock
    if named:
        raise UserError(f"run.name {path}: another process is training there; stop it or choose another name")
    LOG.warning("another process is training in %s; this is a new run beside it", path)
    return None


def _has_checkpoint(path: Path) -> bool:
    """Whether there is anything to go on from; a run that ended before its first save binds nobody to its keys."""
    return any((path / "checkpoints").glob(f"*/{META_FILE}"))


def _launch() -> str | None:
    """Return what torchrun calls this launch; None where it has no name of its own, or there is no torchrun."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if launch == "none" else launch


def _newest_of_launch(output_dir: Path, launch: str) -> Path | None:
    """Return the run folder that this launch opened last."""
    files = [path for path in output_dir.glob(f"*/{RUN_FILE}") if not path.parent.is_symlink()]
    own = [path for path in files if _read_run_file(path.parent).get("launch") == launch]
    return max(own, key=lambda path: path.stat().st_mtime).parent if own else None


def _create(cfg: Config, output_dir: Path) -> Path:
    if cfg.run.name is not None:
        path = output_dir / cfg.run.name
        if path.parent.resolve() != output_dir.resolve():
            raise UserError(f"run.name {cfg.run.name!r}: must be a plain folder name")
        try:
            path.mkdir()
        except FileExistsError as error:
            raise UserError(
                f"run.name {path}: exists already; set run.resume=auto to go on there, or choose another name"
            ) from error
        return path
    while True:
        path = output_dir / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path


def _lock(path: Path, wait: float = 0.0) -> IO[str] | None:
    """Return the run folder's lock, or None when another process still holds it after `wait` seconds.

    The system frees it when this process ends, however it ends; loader workers do not inherit it.
    """
    file = (path / LOCK_FILE).open("w")
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() >= deadline:
                file.close()
                return None
        time.sleep(0.2)


def describe(cfg: Config) -> dict[str, Any]:
    """Return what else is needed to repeat a run: command, code, packages, seed, device."""
    return {
        "started": _now(),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed_files": len((_git("status", "--porcelain", "-uno") or "").splitlines()),
        "packages": {"python": platform.python_version()} | _versions(),
        "seed": cfg.run.seed,
        "launch": _launch(),
        "processes": distributed.world_size(),
        "host": platform.node(),
        "device": _device_name(),
    }


def update_run_file(path: Path, **entries: Any) -> None:
    """Add entries to a run's `run.json`."""
    write_json(path / RUN_FILE, _read_run_file(path) | entries)


def _read_run_file(path: Path) -> dict[str, Any]:
    try:
        content = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _git(*arguments: str) -> str | None:
    """What git says of this checkout; None where the package was installed, maybe below a repository of others."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _device_name() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} cores, {platform.machine()}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
