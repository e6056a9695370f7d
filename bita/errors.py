"""Mistakes that a user can mend: one line that says what, where, and what to do. Shown without a traceback."""

from __future__ import annotations

import os
from pathlib import Path

INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended, as shells have it: 128 + SIGINT."""


class UserError(Exception):
    """A mistake outside the program: data, files, weights, environment. Its message is one line, whatever it quotes.

    Attributes:
        exit_code: of the program that it ends.
        restart: whether the same command may do better when it is started again.
        said: whether another process says it; None: whatever this process meets, the others of this machine meet too.
    """

    exit_code = 1
    restart = False
    said: bool | None = None

    def __init__(self, message: object = "") -> None:
        super().__init__(" ".join(str(message).splitlines()))


class TransientError(UserError):
    """What need not happen again when the same command is started again, as torchrun does."""

    restart = True


class ConfigError(UserError):
    """A mistake in a configuration file or in `--options`."""

    exit_code = 2


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a program that ends with an error."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return error.exit_code if isinstance(error, UserError) else 1


def no_file(path: Path) -> str:
    """Return why `path`, which is no file, is none, for the end of a message."""
    return "is a folder; name a file" if path.is_dir() else "no such file"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(error: BaseException) -> str:
    """An error in a line: of a file, its name and the reason; of what a worker passed on as text, the last line."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if not isinstance(error, OSError):
        return " ".join(f"{type(error).__name__}: {error}".split())
    reason = error.strerror or (str(error).strip() or type(error).__name__).splitlines()[-1]
    files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' -> '.join(files)}: {reason}" if files else reason
