"""METEOR's process: killed, hanging, dead or talking nonsense, it costs no other score."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bita.metrics import CaptionScorer
from bita.metrics.java import Java
from bita.metrics.meteor import Meteor, MeteorError

from .conftest import HYPOTHESES, REFERENCES

PAIRS = [(["two planes", "planes at an airport"], "two planes at an airport"), (["a river"], "a green river")]


@pytest.fixture
def meteor(small_table: Path) -> Meteor:
    return Meteor(table=small_table, timeout=20)


def test_killed_meteor_starts_again(meteor: Meteor) -> None:
    expected = meteor.statistics(PAIRS)
    assert meteor._process is not None
    os.kill(meteor._process._process.pid, signal.SIGKILL)
    assert meteor.statistics(PAIRS) == expected
    meteor.close()


def test_hanging_meteor_is_stopped(fake_java: Callable[[str], Java], small_table: Path) -> None:
    java = fake_java("exec sleep 100")
    start = time.monotonic()
    with pytest.raises(MeteorError, match=r"^no answer to line 1 in 0\.5 s$"):
        Meteor(java, small_table, start_timeout=0.5).statistics(PAIRS)
    assert time.monotonic() - start < 30


def test_stopped_meteor_mid_way_is_stopped(meteor: Meteor) -> None:
    """The process hangs after it has answered; the second one answers."""
    expected = meteor.statistics(PAIRS)
    meteor.timeout = 5
    assert meteor._process is not None
    os.kill(meteor._process._process.pid, signal.SIGSTOP)
    assert meteor.statistics(PAIRS) == expected
    meteor.close()


def test_dead_meteor_shows_its_stderr(fake_java: Callable[[str], Java], small_table: Path) -> None:
    java = fake_java("echo 'not enough memory' >&2; exit 7")
    with pytest.raises(MeteorError, match=r"ended at line 1, exit code 7: not enough memory$"):
        Meteor(java, small_table).statistics(PAIRS)


def test_meteor_behind_a_wrapper_is_stopped_with_it(
    fake_java: Callable[[str], Java], small_table: Path, tmp_path: Path
) -> None:
    java = fake_java(f'sleep 100 & echo $! > "{tmp_path}/pid"; wait')
    with pytest.raises(MeteorError, match="no answer"):
        Meteor(java, small_table, start_timeout=5).statistics(PAIRS)
    pid = (tmp_path / "pid").read_text(encoding="utf-8").strip()
    deadline = time.monotonic() + 30
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_meteor_that_talks_nonsense(fake_java: Callable[[str], Java], small_table: Path) -> None:
    java = fake_java("while read line; do echo 0.5 0.5; done")
    with pytest.raises(MeteorError, match=r"^odd answer to line 1: '0.5 0.5'"):
        Meteor(java, small_table).statistics(PAIRS)


def test_failing_meteor_does_not_cost_the_others(
    fake_java: Callable[[str], Java], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.environ["PATH"]
    dead = fake_java("exit 1")
    monkeypatch.setenv("PATH", path)
    with CaptionScorer(meteor=Meteor(dead)) as scorer:
        monkeypatch.setattr("bita.metrics.scorers.cut_table", lambda *_: Path("/nowhere"))
        scores = scorer.score(REFERENCES, HYPOTHESES)
    assert {"Bleu_4", "ROUGE_L", "CIDEr"} <= set(scores.overall)
    assert "METEOR" not in scores.overall
    assert scores.notes[0].startswith(
        "METEOR: not computed; MeteorError: the process ended at line 1, exit code 1"
    )


def test_plain_meteor_hangs_for_ever_when_java_dies(fake_java: Callable[[str], Java]) -> None:
    fake_java("exit 1")
    program = (
        "from pycocoevalcap.meteor.meteor import Meteor\n"
        "Meteor().compute_score({1: ['a river']}, {1: ['a river']})\n"
    )
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=6)


def test_pipes_in_captions_are_not_separators(meteor: Meteor, scorer: CaptionScorer) -> None:
    [plain] = meteor.statistics([(["a river", "a lake"], "a river b")])
    assert meteor.statistics([(["a ||| river", "a lake |||"], "a ||| river b |||")]) == [plain]
    meteor.close()
    hostile = {**HYPOTHESES, 1: "||| a ||| river || in | the forest EVAL ||| SCORE |||"}
    scores = scorer.score(REFERENCES, hostile)
    assert scores.per_image[7] == scorer.score(REFERENCES, HYPOTHESES).per_image[7] | {
        "CIDEr": scores.per_image[7]["CIDEr"]
    }
    assert len(scores.notes) == 1
