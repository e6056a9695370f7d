"""What every program does with mistakes: one line and an exit code, or a traceback if the program is at fault."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bita
from bita.cli import caption
from bita.commands import program
from bita.errors import ConfigError, TransientError, UserError
from bita.metrics.__main__ import main as metrics
from scripts.make_shards import main as make_shards
from scripts.verify_data import main as verify_data


class TryAgainError(UserError):
    """A mistake with an exit code of its own."""

    exit_code = 75


def fail(error: BaseException) -> int:
    """Run a program that ends with `error`."""

    @program
    def main() -> int:
        raise error

    return main()


MEMORY = "error: out of memory; lower the batch size, images, beams or lengths"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("data/ucm: holds no images"), 1, "error: data/ucm: holds no images\n"),
        (ConfigError("run.max_epoch: not a number"), 2, "error: run.max_epoch: not a number\n"),
        (TryAgainError("stopped"), 75, "error: stopped\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "out/a.json"),
            1,
            "error: out/a.json: Permission denied\n",
        ),
        (
            OSError(errno.EXDEV, "Invalid cross-device link", b"a", None, "b"),
            1,
            "error: a -> b: Invalid cross-device link\n",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: No space left on device\n"),
        (OSError("Caught OSError in worker 0.\nTraceback\nOSError: gone\n"), 1, "error: OSError: gone\n"),
        (OSError(), 1, "error: OSError\n"),
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 1, f"{MEMORY} (MemoryError:)\n"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee"),
            1,
            f"{MEMORY} (RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB. See)\n",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    assert fail(error) == code
    assert capsys.readouterr() == ("", line)


def test_arguments_and_exit_code_pass_through() -> None:
    assert program(lambda code, twice: code * 2 if twice else code)(3, twice=True) == 6


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())
    with pytest.raises(RuntimeError):
        fail(RuntimeError("shapes"))


def test_one_process_of_a_machine_says_what_all_of_them_meet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert fail(ConfigError("run.max_epoch: not a number")) == 2
    assert fail(UserError("run.output_dir: cannot be written")) == 1
    assert capsys.readouterr().err == ""
    own = UserError("image x: broken")
    own.said = False
    assert fail(own) == 1
    assert capsys.readouterr().err == "error: image x: broken\n"


def test_every_program_prints_warnings_as_such_and_one_process_of_a_machine_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @program
    def warns() -> int:
        logging.getLogger("bita.some.part").warning("%s: is odd", "a.jpg")
        return 0

    assert warns() == 0
    assert capsys.readouterr().err == "warning: a.jpg: is odd\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert warns() == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("error", "again"), [(ConfigError("a: b"), False), (TransientError("a: b"), True)])
def test_a_restart_ends_at_once_where_the_mistake_is_still_there(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: UserError,
    again: bool,
) -> None:
    """The files lie as torchrun lays them; the restarted processes leave the same reason for its report."""
    files = [tmp_path / f"attempt_{attempt}/{rank}/error.json" for attempt in range(3) for rank in range(2)]
    for attempt in range(3):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(files[2 * attempt]))
        files[2 * attempt].parent.mkdir(parents=True)
        assert fail(error) == error.exit_code
        assert json.loads(files[2 * attempt].read_text())["message"] == "a: b"
    assert capsys.readouterr().err == "error: a: b\n" * (3 if again else 1)


def test_a_reader_that_went_away_is_no_traceback(tmp_path: Path) -> None:
    program = tmp_path / "lines.py"
    program.write_text(
        "import sys\nfrom bita.commands import program\n"
        "@program\ndef main():\n    for _ in range(100_000): print('a caption')\n    return 0\nsys.exit(main())\n"
    )
    done = subprocess.run(
        f"{sys.executable} {program} | head -n 1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "a caption\n", "")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (metrics, ["r.json", "h.json", "--bootstrap", "-1"]),
        (metrics, ["r.json", "h.json", "--seed", "-1"]),
        (make_shards, ["pack", "data", "train", "out", "--per-shard", "0"]),
        (verify_data, ["data", "--near", "-1"]),
        (caption, ["--checkpoint", "run", "a.png", "--beams", "0"]),
        (caption, ["--checkpoint", "run", "a.png", "--num-captions", "0"]),
    ],
)
def test_counts_below_what_they_can_be_are_refused(
    command: Callable[[list[str]], int], option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(option)
    assert ended.value.code == 2
    least = 1 if option[-1] == "0" else 0
    assert f"argument {option[-2]}: must be at least {least}, not {option[-1]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.png", "--ouput", "x.csv"], "unrecognized arguments: --ouput x.csv; did you mean --output?"),
        (["a.png", "--zzz"], "unrecognized arguments: --zzz"),
        (
            ["a.png", "--num-captions", "three"],
            "argument --num-captions: must be a whole number, not 'three'",
        ),
        (["a.png", "--temperature", "warm"], "argument --temperature: must be a number, not 'warm'"),
        (["a.png", "--temperature", "inf"], "argument --temperature: must be above 0, not inf"),
        (["a.png", "--top-p", "nan"], "argument --top-p: must be above 0 and at most 1, not nan"),
        (["a.tif", "--gsd", "0.5m"], "argument --gsd: must be a number, not '0.5m'"),
        (["a.tif", "--min-valid", "50%"], "argument --min-valid: must be a number, not '50%'"),
        (["a.tif", "--min-valid", "50"], "argument --min-valid: must be from 0 to 1, not 50"),
        (
            ["a.tif", "--bands", "r,g,b"],
            "argument --bands: wanted three band numbers from 1, such as 4,3,2, not r,g,b",
        ),
        ([], "name an image, or a folder of them"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/bita-caption"])
    with pytest.raises(SystemExit) as ended:
        caption(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {said} (bita-caption --help shows all)\n"


def test_every_program_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (caption, metrics, verify_data):
        with pytest.raises(SystemExit) as ended:
            command(["--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"bita {bita.__version__}\n"
