"""What every program of the project has: a command line whose mistakes are one line, and an end with an exit code."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from bita.errors import INTERRUPTED, UserError, one_line
from bita.version import VERSION

P = ParamSpec("P")
N = TypeVar("N", int, float)


def at_least(least: int, most: float = float("inf")) -> Callable[[str], int]:
    """For the `type` of an option of argparse: a whole number that is not below `least`, nor above `most`."""

    def whole_number(text: str) -> int:
        value = _read(int, text, "a whole number")
        if not least <= value <= most:
            wanted = f"at least {least}" if value < least else f"at most {most}"
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {value}")
        return value

    return whole_number


def above(least: float, most: float = float("inf")) -> Callable[[str], float]:
    """For the `type` of an option of argparse: a finite number above `least`, and not above `most`."""

    def number(text: str) -> float:
        value = _read(float, text, "a number")
        if not least < value <= most or math.isinf(value):
            upto = "" if math.isinf(most) else f" and at most {most:g}"
            raise argparse.ArgumentTypeError(f"must be above {least:g}{upto}, not {value:g}")
        return value

    return number


def share(text: str) -> float:
    """For the `type` of an option of argparse: a number from 0 to 1."""
    value = _read(float, text, "a number")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text}")
    return value


def _read(kind: Callable[[str], N], text: str, what: str) -> N:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}") from None


class CommandLine(argparse.ArgumentParser):
    """A parser of a program's arguments, whose mistakes are one line, as all others of its user's are."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and the option that was meant if one is like it; exit code 2."""
        import difflib

        _, _, unknown = message.partition("unrecognized arguments: ")
        known = [name for name in self._option_string_actions if name.startswith("--")]
        meant = difflib.get_close_matches(unknown.split("=")[0].split(" ")[0], known, 1)
        hint = f"; did you mean {meant[0]}?" if meant else ""
        self.exit(2, f"error: {message}{hint} ({self.prog} --help shows all)\n")


def command_line(description: str | None) -> CommandLine:
    """Return a parser of a program's arguments, whose help shows `description` as it is written."""
    started = getattr(sys.modules["__main__"], "__spec__", None)  # as `python -m PACKAGE`, or None
    inside = Path(sys.argv[0]).name == "__main__.py"
    parser = CommandLine(
        prog=f"python -m {started.parent}" if started is not None and inside else None,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bita {VERSION}")
    return parser


def program(main: Callable[P, int]) -> Callable[P, int]:
    """Make `main` a program's body: what a user can mend ends it with an exit code and one line, no traceback.

    A `UserError` gives its own exit code, an `OSError` and a failed allocation 1, Ctrl-C 130 without a word, and so
    does a reader of the output that went away (`| head`) with 1. Anything else is a fault of the program and keeps
    its traceback. What the terminal's encoding cannot hold, such as a file name that is no UTF-8, is printed as its
    code. Warnings of this package are printed as `warning: …`. Of several processes of a machine under torchrun one
    speaks, and what a restart would meet again ends the restarted ones at once.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        _show_warnings()
        before = _end_before_restart()
        if before is not None:
            _leave_for_torchrun(before)
            return int(before["final"])
        try:
            code = main(*args, **kwargs)
            sys.stdout.flush()
            return code
        except UserError as error:
            if not (others_see_it_too() if error.said is None else error.said):
                print(f"error: {error}", file=sys.stderr, flush=True)
            final = None if error.restart else error.exit_code
            _leave_for_torchrun({"message": str(error), "timestamp": int(time.time()), "final": final})
            return error.exit_code
        except KeyboardInterrupt:
            return INTERRUPTED
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            less = "lower the batch size, images, beams or lengths"
            print(f"error: out of memory; {less} ({one_line(error)[:200]})", file=sys.stderr, flush=True)
            return 1
        except OSError as error:
            if isinstance(error, BrokenPipeError) and error.filename is None:
                os.dup2(
                    os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
                )  # or Python complains at its end
            else:
                print(f"error: {one_line(error)}", file=sys.stderr)
            return 1

    return run


def _show_warnings() -> None:
    """Print the warnings of this package, one line each; nothing that another process says too."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    log = logging.getLogger("bita")
    log.handlers[:] = [handler]
    log.setLevel(logging.ERROR if others_see_it_too() else logging.WARNING)


def _leave_for_torchrun(end: dict[str, Any]) -> None:
    """Write the file that torchrun reads the reason of an end from: message, timestamp, and whether that is final."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps(end), encoding="utf-8")


def _end_before_restart() -> dict[str, Any] | None:
    """What the processes before torchrun's restart left, where it is final; torchrun itself restarts after anything.

    Its files lie at attempt_N/LOCAL_RANK/error.json, in a folder that is one launch's alone.
    """
    path, count = os.environ.get("TORCHELASTIC_ERROR_FILE"), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if not path or count == "0":
        return None
    for file in Path(path).parents[1].with_name(f"attempt_{int(count) - 1}").glob("*/error.json"):
        with contextlib.suppress(OSError, ValueError):
            end = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(end, dict) and isinstance(end.get("final"), int):
                return end
    return None


def _out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, of the host or, as torch says it, of either."""
    said = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def others_see_it_too() -> bool:
    """Whether another process of this machine says it: under torchrun all read the same configuration and files."""
    return os.environ.get("LOCAL_RANK", "0") != "0"
