"""Mistakes that a user can mend: one line that says what, where, and what to do. Shown without a traceback."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")
INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended, as shells have it: 128 + SIGINT."""


class UserError(Exception):
    """A mistake outside the program: data, files, weights, environment."""

    exit_code = 1


class ConfigError(UserError):
    """A mistake in a configuration file or in ``--options``."""

    exit_code = 2


def program(main: Callable[P, int]) -> Callable[P, int]:
    """Make ``main`` a program's body: what a user can mend ends it with an exit code and one line, no traceback.

    A ``UserError`` gives its own exit code, an ``OSError`` 1, Ctrl-C 130 without a word, and so does a reader of the
    output that went away (``| head``) with 1. Anything else is a fault of the program and keeps its traceback. What the
    terminal's encoding cannot hold, such as a file name that is no UTF-8, is printed as its code.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            code = main(*args, **kwargs)
            sys.stdout.flush()
            return code
        except UserError as error:
            if not (isinstance(error, ConfigError) and _is_said_elsewhere()):
                print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            return INTERRUPTED
        except OSError as error:
            if isinstance(error, BrokenPipeError) and error.filename is None:
                os.dup2(
                    os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
                )  # or Python complains at its end
            else:
                print(f"error: {_one_line(error)}", file=sys.stderr)
            return 1

    return run


def _is_said_elsewhere() -> bool:
    """Whether another process of this machine prints the same: under torchrun all read the same configuration."""
    return os.environ.get("LOCAL_RANK", "0") != "0"


def _one_line(error: OSError) -> str:
    """The file and the reason; of an error that a worker process passed on as text, the last line."""
    reason = error.strerror or (str(error).strip() or type(error).__name__).splitlines()[-1]
    files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' -> '.join(files)}: {reason}" if files else reason
