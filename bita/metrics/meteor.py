"""METEOR 1.5 as one live Java process that is asked with a time limit, killed when it hangs, and started again.

The jar, its paraphrase table and the arithmetic are pycocoevalcap's. The conversation, as the jar reads it from its
standard input: a line `SCORE ||| reference ||| … ||| hypothesis` is answered with a line of statistics, a line
`EVAL ||| statistics ||| …` with one score for each of them and then the score of all together.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from bita.metrics.java import Java, environment, find_java, jar_folder
from bita.metrics.paraphrases import full_table

JAR = "meteor-1.5.jar"
STATISTICS = 23
CHUNKS = 20
SEPARATOR = "|||"
EXIT_TIMEOUT = 5.0


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
        start_timeout: float = 300.0,
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
        lines = [_score_line(references, hypothesis) for references, hypothesis in pairs]
        return self._ask(lines, len(lines), STATISTICS) if lines else []

    def scores(self, statistics: Sequence[str]) -> tuple[float, list[float]]:
        """Return the score of all together and of each, from their statistics.

        Raises:
            MeteorError: the process failed twice.
        """
        line = f" {SEPARATOR} ".join(["EVAL", *statistics])
        *each, whole = map(float, self._ask([line], len(statistics) + 1, 1))
        return whole, each

    def use(self, table: Path) -> None:
        """Take this paraphrase table from now on."""
        if table != self.table:
            self.close()
            self.table = table

    def close(self) -> None:
        """End the process; the next question starts another."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _ask(self, lines: Sequence[str], answers: int, numbers: int) -> list[str]:
        """Ask for lines of so many numbers, and once more with a fresh process when that fails."""
        for last in (False, True):
            try:
                if self._process is None:
                    self._process = _Process(self._command(), self.start_timeout)
                return self._process.ask(lines, answers, numbers, self.timeout)
            except MeteorError:
                self.close()
                if last:
                    raise
        raise AssertionError("never reached")

    def _command(self) -> list[str]:
        folder = jar_folder() / "meteor"
        java = self.java or find_java()
        options = ["-", "-", "-stdio", "-l", "en", "-norm", "-a", str(self.table or full_table())]
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
                env=environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise MeteorError(f"{command[0]}: cannot be started ({error.strerror})") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin: IO[bytes] = self._process.stdin
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True).start()
        try:
            self.ask([_score_line(["a"], "a")], 1, STATISTICS, start_timeout)
        except MeteorError:
            self.close()
            raise

    def ask(self, lines: Sequence[str], answers: int, numbers: int, timeout: float) -> list[str]:
        """Write lines, collect so many answers of so many numbers, each within `timeout` seconds of the one before."""
        text = "".join(f"{line}\n" for line in lines).encode("utf-8")
        threading.Thread(target=_write, args=(self._stdin, text), daemon=True).start()
        return [self._answer(k, numbers, timeout) for k in range(answers)]

    def close(self) -> None:
        if os.getpid() != self._owner:
            return  # a forked copy of the program must leave the process to the original
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # with what a wrapper script may have started
            self._process.wait()
        with contextlib.suppress(OSError):
            self._stdin.close()  # what could not be written any more is lost, as it should be
        self._errors.close()

    def _answer(self, k: int, numbers: int, timeout: float) -> str:
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise MeteorError(f"no answer to line {k + 1} in {timeout:g} s") from None
        if answer is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_TIMEOUT)
            code = self._process.returncode
            raise MeteorError(f"the process ended at line {k + 1}, exit code {code}: {self._said()}")
        if not _has(answer, numbers):
            raise MeteorError(f"odd answer to line {k + 1}: {answer[:80]!r} {self._said()}")
        return answer

    def _said(self) -> str:
        self._errors.seek(0)
        words = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return words[0] if words else "it said nothing"


def _write(stdin: IO[bytes], text: bytes) -> None:
    try:
        stdin.write(text)
        stdin.flush()
    except (OSError, ValueError):
        return  # the process is gone, which the reader notices


def _read(stdout: IO[bytes], answers: queue.SimpleQueue[str | None]) -> None:
    for line in stdout:
        answers.put(line.decode("utf-8", "replace").strip())
    answers.put(None)


def _score_line(references: Sequence[str], hypothesis: str) -> str:
    parts = [part.replace(SEPARATOR, "").replace("  ", " ") for part in (*references, hypothesis)]
    return f" {SEPARATOR} ".join(["SCORE", *parts])


def additive(statistics: Sequence[str]) -> NDArray[np.float64]:
    """Lines of statistics as numbers (lines, 23) whose sums over lines give METEOR of the set.

    As METEOR adds them up, the chunk of a hypothesis that matches its reference whole does not count.
    """
    numbers = np.array([[float(word) for word in line.split()] for line in statistics])
    matched = numbers[:, 4:20].reshape(-1, 8, 2).sum(axis=1)
    whole = (matched == numbers[:, 0:2]).all(axis=1) & (numbers[:, CHUNKS] == 1)
    numbers[whole, CHUNKS] = 0.0
    return numbers


def _has(answer: str, numbers: int) -> bool:
    try:
        return len([float(word) for word in answer.split()]) == numbers
    except ValueError:
        return False
