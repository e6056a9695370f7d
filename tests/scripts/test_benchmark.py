"""The benchmarks of parts measure what they say they measure."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from bita.errors import UserError
from scripts.benchmarks.loading import main
from tests.datasets.makers import prepared

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts/benchmarks"))
import benchmark
import counts
import turns


def test_every_way_of_loading_is_measured_and_its_decoded_files_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepared(tmp_path / "toy", images=61, splits=("train",))
    table = tmp_path / "table.md"
    options = ["--files", "60", "--size", "16", "--workers", "0", "--repeats", "1", "--markdown", str(table)]
    assert main(["loader", str(folder), *options]) == 0
    printed = capsys.readouterr().out
    assert table.read_text() == printed
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| toy")]
    assert [(name, workers, decoded) for _, name, workers, _, _, decoded in rows] == [
        ("torch DataLoader, torchvision", "0", "1.00"),
        ("pairs", "0", "1.00"),
        ("grouped", "0", "0.20"),
        ("cached", "0", "0.00"),
        ("cached, grouped", "0", "0.00"),
        ("shards", "0", "1.00"),
        ("shards, grouped", "0", "0.20"),
    ]
    assert all(float(row[3]) > 0 for row in rows)
    assert main(["loader", str(folder), "--files", "59", "--size", "16", "--workers", "0"]) == 1
    assert capsys.readouterr().err.startswith("error: train splits: 59 records are less than one batch of 60")


def test_streamed_records_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "--records", "300"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [row.split(" | ")[0] for row in rows] == ["| 100", "| 200", "| 300"]


def table_of(printed: str) -> dict[str, list[str]]:
    """First cell of a line of the table → its other cells."""
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return {name: cells for name, *cells in lines[1:]}


@pytest.mark.parametrize(
    ("row", "cases", "same"),
    [
        ("contrast", ["contrast, batch 6 of 2 processes"], "loss .*, gradient .*"),
        ("grouped", ["grouped, 2 images of 5 captions"], "loss .*, gradient .*"),
        (
            "search",
            ["search, 4,000 images of 32 vectors", "search, 8,000 images of 8 vectors"],
            "the 20 best, as in double precision",
        ),
        (
            "captioning",
            [
                f"captioning, batch {batch}, {other}"
                for batch in (1, 3)
                for other in ("reference", "transformers", "floor")
            ],
            "tokens equal",
        ),
        (
            "input",
            [
                f"input, {what}{where}"
                for where in (", all on the CPU", ", crops and flips left to a device")
                for what in ("pairs", "5 captions an image")
            ],
            "token ids; pixels within 1 of 256",
        ),
    ],
)
def test_a_row_compares_equal_results_and_says_the_ratio(
    row: str, cases: list[str], same: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrote = tmp_path / f"{row}.json"
    assert benchmark.main([row, "--small", "--rounds", "2", "--json", str(wrote)]) == 0
    printed = capsys.readouterr().out
    found = table_of(printed)
    assert list(found) == cases
    for cells in found.values():
        ours, theirs, ratio = float(cells[2]), float(cells[3]), cells[4]
        middle, least, highest = map(float, re.findall(r"[\d.]+", ratio))
        assert 0 < least <= middle <= highest
        assert least * 0.5 < theirs / ours < highest * 2
        assert re.fullmatch(same, cells[6])
    assert benchmark.main(["table", str(wrote)]) == 0
    again = capsys.readouterr().out
    assert table_of(again) == found
    assert f"`python scripts/benchmarks/benchmark.py {row} --small --rounds 2 --json {wrote}`" in again


def test_sides_that_differ_are_not_compared() -> None:
    assert turns.same_values("loss", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), 0) == "loss equal"
    with pytest.raises(UserError, match=r"loss: the sides differ by 0.5 of the largest value, more than 0.1"):
        turns.same_values("loss", torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0]), 0.1)
    with pytest.raises(UserError, match="loss: the sides differ by nan"):
        turns.same_values("loss", torch.tensor([1.0, torch.nan]), torch.tensor([0.0, 2.0]), 0.1)


def test_the_published_arithmetic_and_its_floors(capsys: pytest.CaptureFixture[str]) -> None:
    assert counts.main([]) == 0
    printed = capsys.readouterr().out
    assert "| vision encoder, an image | 141.810 GF |" in printed
    found = {
        name: [float(ms) for ms in re.findall(r"([\d.]+) ms", " ".join(cells))]
        for name, cells in table_of(printed).items()
    }
    for name, wanted in {
        "stage 1, 96 pairs": [23.6, 5.8, 2.4],
        "stage 2, 48 pairs": [50.2, 40.2, 15.7, 14.0],
        "fine-tuning, 48 pairs": [52.2, 42.2, 17.6, 15.9],
    }.items():
        assert found[name] == pytest.approx(wanted, rel=0.01)
    captions = [float(table_of(printed)[str(batch)][0]) for batch in (16, 64, 256)]
    assert captions == pytest.approx([354, 855, 919], rel=0.01)
