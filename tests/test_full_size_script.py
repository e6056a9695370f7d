"""The full-size benchmark goes through all of its parts in small, and rewrites its own section of the results only."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts/benchmarks"))
import full_size

ROWS = [
    ("stage 1", "IFT"),
    ("stage 2", "IFT"),
    ("fine-tuning", "IFT"),
    ("captioning, 5 beams", "IFT"),
    ("stage 1", "Q-Former"),
    ("stage 2", "Q-Former"),
    ("fine-tuning", "Q-Former"),
    ("captioning, 5 beams", "Q-Former"),
    ("stage 2", "transformers' BLIP-2"),
    ("captioning, 5 beams", "transformers' BLIP-2"),
]


def test_both_parts_in_small_fill_their_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "full_size.md"
    results.write_text("# Full size\n\n## GPU\n\nnot measured: needs a GPU\n\n## Words\n\nstay\n")
    for part in ("cpu", "gpu"):
        assert full_size.main([part, "--tiny", "--steps", "12", "--markdown", str(results)]) == 0
    text = results.read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Full size",
        "## GPU",
        "## Words",
        "## CPU",
    ]
    assert "stay" in text
    assert "not measured" not in text
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    rows = [cells for cells in table if tuple(cells[:2]) in ROWS]
    assert [tuple(cells[:2]) for cells in rows] == ROWS
    for cells in rows:
        if cells[8]:
            first, last = map(float, cells[8].split(" → "))
            assert last < first, cells


def test_without_a_gpu_the_gpu_part_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert full_size.main(["gpu"]) == 1
    assert capsys.readouterr().err.startswith("error: gpu: this machine has no CUDA device")
