"""One project file a family of language models trains on the synthetic dataset, and reads its images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCENES = {"train": 600, "val": 6, "test": 60, "size": 96, "seed": 5}


@pytest.mark.long
def test_each_family_scores_above_the_shuffled_control(tmp_path: Path) -> None:
    scenes = [f"--{key}={value}" for key, value in SCENES.items()]
    drawn = [sys.executable, "scripts/make_synthetic.py", str(tmp_path / "data/synthetic"), *scenes]
    subprocess.run(drawn, cwd=ROOT, check=True, capture_output=True)
    options = [f"datasets.synthetic_caption.synthetic.{key}={value}" for key, value in SCENES.items()]
    done = subprocess.run(
        ["bash", "scripts/decoders.sh", str(tmp_path)],
        cwd=ROOT,
        env=os.environ
        | {"OPTIONS": " ".join([*options, "run.max_epoch=10", "run.device=cpu"]), "NPROC": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "decoders.md").read_text().splitlines()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in lines
        if "ForCausalLM" in line or "LMHead" in line
    ]
    assert [row[0].split()[0] for row in rows] == ["opt", "llama", "qwen", "gpt2"]
    for row in rows:
        assert float(row[4]) > 2 * float(row[5]), row  # CIDEr, and with the images shuffled
        assert float(row[6].split("%")[0]) >= 95, row  # captions equal in 8 bit
        full, less = map(float, row[7].split(" → "))
        assert less < 0.75 * full, row
