"""The crash test in small: real torchrun training under SIGKILL ends with the undisturbed run's weights."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_four_kills_lose_nothing():
    command = [sys.executable, "scripts/checks/crash_test.py", "--kills", "4"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "final weights equal the undisturbed run byte for byte: 0 lost" in answer.stdout
    workers, inside, launcher = map(
        int, re.search(r"kills: (\d+) .*?, (\d+) .*?, (\d+) of", answer.stdout).groups()
    )
    assert workers + launcher == 4
    assert inside >= 1
    assert launcher >= 1
