"""METEOR 1.5 as one live Java process that is asked with a time limit, killed when it hangs, and started again.

The jar, its paraphrase table and the arithmetic are pycocoevalcap's. The conversation, as the jar reads it from its
standard input: a line ``SCORE ||| reference ||| … ||| hypothesis`` is answered with a line of statistics, a line
``EVAL ||| statistics ||| …`` with one score for each of them and then the score of all together.
"""

from __future__ import annotations

import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from bita.metrics.java import Java, find_java, jar_folder

JAR = "meteor-1.5.jar"
STATISTICS = 23
SEPARATOR = "|||"


class MeteorError(Exception):
    """METEOR did not answer, or answered what cannot be read; the message is one line."""


class Meteor:
    """A METEOR process, started at the first question.

    Args:
        java: which Java; None looks for one.
        table: paraphrase table; None takes the full one of the jar's folder.
        start_timeout: seconds until the first answer, the loading of the table included.
        timeout: seconds for each further answer.
    """

    def __init__(
        self,
        java: Java | None = None,
        table: Path | None = None,
        *,
        start_timeout: float = 180.0,
        timeout: float = 60.0,
    ) -> None:
        self.java = java
        self.table = table
        self.start_timeout = start_timeout
        self.timeout = timeout
        self._process: _Process | None = None

    def statistics(self, pairs: Sequence[tuple[Sequence[str], str]]) -> list[str]:
        """METEOR's line of statistics for each pair of references and hypothesis, all tokenized.

        Raises:
            MeteorError: the process failed twice.
        """
        replies = self._ask(
            [_score_line(references, hypothesis) for references, hypothesis in pairs], len(pairs)
        )
        for k, reply in enumerate(replies):
            if len(_numbers(reply)) != STATISTICS:
                self.close()
                raise MeteorError(f"odd answer to pair {k}: {reply[:80]!r}")
        return replies

    def scores(self, statistics: Sequence[str]) -> tuple[float, list[float]]:
        """The score of all together and of each, from their statistics.

        Raises:
            MeteorError: the process failed twice.
        """
        line = f" {SEPARATOR} ".join(["EVAL", *statistics])
        replies = self._ask([line], len(statistics) + 1)
        values = [_numbers(reply) for reply in replies]
        if any(len(value) != 1 for value in values):
            self.close()
            raise MeteorError("odd answer to EVAL")
        return values[-1][0], [value[0] for value in values[:-1]]

    def close(self) -> None:
        """End the process; the next question starts another."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _ask(self, lines: Sequence[str], answers: int) -> list[str]:
        """Ask, and once more with a fresh process when that fails."""
        try:
            return self._ask_once(lines, answers)
        except MeteorError:
            self.close()
        try:
            return self._ask_once(lines, answers)
        except MeteorError:
            self.close()
            raise

    def _ask_once(self, lines: Sequence[str], answers: int) -> list[str]:
        if self._process is None:
            self._process = _Process(self._command(), self.start_timeout)
        return self._process.ask(lines, answers, self.timeout)

    def _command(self) -> list[str]:
        folder = jar_folder() / "meteor"
        table = self.table or folder / "data" / "paraphrase-en.gz"
        java = self.java or find_java()
        options = ["-", "-", "-stdio", "-l", "en", "-norm", "-a", str(table)]
        return [*java.base("2g"), "-jar", str(folder / JAR), *options]


class _Process:
    """The running process with a thread that reads its answers; leaves with `close`, and never blocks for ever."""

    def __init__(self, command: Sequence[str], start_timeout: float) -> None:
        self._owner = os.getpid()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,
            )
        except OSError as error:
            raise MeteorError(f"{command[0]}: cannot be started ({error.strerror})") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin: IO[bytes] = self._process.stdin
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        try:
            self.ask([_score_line(["a"], "a")], 1, start_timeout)
        except MeteorError:
            self.close()
            raise

    def ask(self, lines: Sequence[str], answers: int, timeout: float) -> list[str]:
        """Write lines, collect so many answers, each within `timeout` seconds of the one before."""
        text = "".join(f"{line}\n" for line in lines).encode("utf-8")
        threading.Thread(target=self._write, args=(text,), daemon=True).start()
        return [self._answer(k, timeout) for k in range(answers)]

    def close(self) -> None:
        if os.getpid() != self._owner:
            return  # a forked copy of the program must leave the process to the original
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _answer(self, k: int, timeout: float) -> str:
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise MeteorError(f"no answer to line {k} in {timeout:g} s") from None
        if answer is None:
            raise MeteorError(
                f"the process ended at line {k}, exit code {self._process.wait()}: {self._said()}"
            )
        return answer

    def _said(self) -> str:
        self._errors.seek(0)
        words = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return words[0] if words else "it said nothing"

    def _write(self, text: bytes) -> None:
        try:
            self._stdin.write(text)
            self._stdin.flush()
        except (OSError, ValueError):
            return  # the process is gone, which the reader notices

    def _read(self, stdout: IO[bytes]) -> None:
        for line in stdout:
            self._answers.put(line.decode("utf-8", "replace").strip())
        self._answers.put(None)


def _score_line(references: Sequence[str], hypothesis: str) -> str:
    parts = [part.replace(SEPARATOR, "").replace("  ", " ") for part in (*references, hypothesis)]
    return f" {SEPARATOR} ".join(["SCORE", *parts])


def _numbers(answer: str) -> list[float]:
    try:
        return [float(word) for word in answer.split()]
    except ValueError:
        return []
