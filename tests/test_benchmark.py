"""The benchmarks of parts measure what they say they measure."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.benchmarks import captioning
from scripts.benchmarks.loading import main
from tests.datasets.makers import prepared


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


def test_captioning_is_measured_on_equal_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--width", "64", "--layers", "1", "--vocabulary", "64", "--prefix", "3", "--tokens", "4"]
    assert captioning.main(["--batch", "1", "3", "--repeats", "1", *sizes]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [row[0] for row in rows] == ["1", "3"]
    assert all(0 < float(row[4].split()[0]) < 1 for row in rows)
