"""bash whose Python is the process of the tests, so that libraries are imported once for many commands."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import socket
import subprocess
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMMANDS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
"""What an installed package puts on the path → module:function."""
ASK = """#!{python} -IS
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as there:
    there.connect({address!r})
    asked = {{"words": sys.argv, "folder": os.getcwd(), "stdin": sys.stdin.buffer.read().decode("latin-1")}}
    there.sendall(json.dumps(asked).encode())
    there.shutdown(socket.SHUT_WR)
    answer = json.loads(b"".join(iter(lambda: there.recv(65536), b"")))
sys.stdout.write(answer["out"])
sys.stderr.write(answer["err"])
sys.exit(answer["code"])
"""
Adapt = Callable[[list[str]], list[str] | None]


@dataclass
class Said:
    """How a script ended."""

    code: int
    out: str
    err: str


class Shell:
    """A folder in which shell commands run; `.venv/bin` in it has a `python`, and the package's commands.

    Args:
        folder: where they run.
        adapt: what is asked for, without the name of Python → what runs instead; None, nothing does.
    """

    def __init__(self, folder: Path, adapt: Adapt = lambda words: words) -> None:
        self.folder, self.adapt = folder, adapt
        self.bin = folder / ".venv/bin"
        self.bin.mkdir(parents=True)
        self._home = tempfile.TemporaryDirectory(prefix="shell-")  # addresses of sockets are short
        self._place = socket.socket(socket.AF_UNIX)
        address = f"{self._home.name}/python"
        self._place.bind(address)
        self._place.listen()
        self._place.settimeout(0.05)
        for name in ("python", *COMMANDS):
            (self.bin / name).write_text(ASK.format(python=sys.executable, address=address))
            (self.bin / name).chmod(0o755)
        (self.bin / "activate").touch()

    def close(self) -> None:
        """Answer no more."""
        self._place.close()
        self._home.cleanup()

    def __call__(self, script: str) -> Said:
        """Run a script, to the first command that fails."""
        environment = os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            bash = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
            try:
                while bash.poll() is None:
                    with contextlib.suppress(TimeoutError):
                        self._answer(self._place.accept()[0])
            finally:
                bash.kill()
                bash.wait()
            out.seek(0)
            err.seek(0)
            return Said(bash.returncode, out.read(), err.read())

    def _answer(self, asks: socket.socket) -> None:
        with asks:
            asks.settimeout(None)
            asked = json.loads(b"".join(iter(lambda: asks.recv(65536), b"")))
            program, *words = asked["words"]
            if Path(program).name != "python":
                words = [Path(program).name, *words]
            instead = self.adapt(words)
            said = Said(0, "", "") if instead is None else run(instead, asked["folder"], asked["stdin"])
            asks.sendall(json.dumps(vars(said)).encode())


def run(words: Sequence[str], folder: str | Path, stdin: str = "") -> Said:
    """Run what Python was asked for in this process: a file, -m MODULE, -c CODE, or a command of the package."""
    import torch  # noqa: F401 - a program that finds it loaded leaves the collector of garbage as it is

    out, err = io.StringIO(), io.StringIO()
    saved = sys.argv, sys.path[:], sys.stdin
    given = io.TextIOWrapper(io.BytesIO(stdin.encode("latin-1")))
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.stdin = given
        try:
            code = ended(lambda: start(list(words)))
        finally:
            sys.argv, sys.path[:], sys.stdin = saved
    return Said(code, out.getvalue(), err.getvalue())


def start(words: list[str]) -> Any:
    """Do what `python WORDS` does, or a command of the package."""
    first, *rest = words
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first in COMMANDS:
        sys.argv = words
        module, function = COMMANDS[first].split(":")
        return getattr(import_module(module), function)()
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")
    return 0


def ended(work: Callable[[], Any]) -> int:
    """The exit code that a program would end with."""
    try:
        return int(work() or 0)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except Exception:
        traceback.print_exc()
        return 1


def blocks(text: str) -> list[tuple[int, str, str]]:
    """What a document has of code: line, language ("" of what is set in by four spaces), content."""
    fenced = r"^```(?P<language>\w*)\n(?P<fenced>.*?)^```$"
    indented = r"(?:(?<=\n\n)|\A)(?P<indented>(?:    [^\n]*\n)+)"
    return [
        (text[: found.start()].count("\n") + 1, found["language"] or "", found["fenced"] or found["indented"])
        for found in re.finditer(f"{fenced}|{indented}", text, re.M | re.S)
    ]
