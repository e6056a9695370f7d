"""Every figure in benchmarks/ says what was measured, when, and how to do it again; the README repeats them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks import reproduce

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks").glob("*.md"))


def numbers(text: str) -> set[float]:
    return {float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text)}


def measurements(path: Path) -> Iterator[dict[str, Any]]:
    yield from reproduce.read(path)[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_measurement_has_a_commit_a_date_and_a_command_that_is_there(path: Path) -> None:
    _, body = reproduce.read(path)
    for entry in measurements(path):
        if entry["commit"] is None:
            assert "not measured" in body.lower().replace("\n", " ")
        else:
            assert re.fullmatch("[0-9a-f]{7,40}", entry["commit"])
            assert re.fullmatch(r"20\d\d-\d\d-\d\d", str(entry["date"]))
        for script in re.findall(r"scripts/\S+|\S+\.py\b", entry.get("command", "")):
            assert (ROOT / script).is_file()
        missing = {value for value in entry.get("values", {}).values() if value is not True} - numbers(body)
        assert missing == set()


def rows_with_a_link(text: str, folder: Path) -> Iterator[tuple[set[float], Path]]:
    """Numbers of each table row that names a file, without those of its first cell, and that file."""
    for row in re.findall(r"^\|.*\]\(.*\|$", text, re.M):
        target = folder / re.findall(r"\]\(([^)]*)\)", row)[-1]
        cells = re.sub(r"\]\([^)]*\)", "", row).strip("|").split("|")[1:]
        yield numbers(" ".join(cell for cell in cells if "[" not in cell)), target


def test_the_readme_repeats_what_is_recorded() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Results")[2]
    rows = list(rows_with_a_link(text, ROOT))
    assert len(rows) >= 5
    for said, path in rows:
        assert any(said <= set(entry.get("values", {}).values()) for entry in measurements(path)), said


def test_all_scores_in_one_place_are_those_of_the_files_that_they_come_from() -> None:
    text = (ROOT / "benchmarks/results.md").read_text(encoding="utf-8")
    rows = list(rows_with_a_link(text, ROOT / "benchmarks"))
    assert len(rows) >= 15
    for said, path in rows:
        assert said <= numbers(path.read_text(encoding="utf-8")), (path.name, said)


RECORD = """---
measurements:
- what: scores
  command: |
    echo '{"test": {"CIDEr": SCORE}, "seconds": 3}' > "$OUT/scores.json"
  result: scores.json
  commit: 0123abc
  date: 2026-01-02
  values: {test.CIDEr: 1.5, seconds: 2}
  within: {seconds: 0.6}
- what: speed
  command: |
    printf '| way | images/s |\\n|---|---|\\n| plain | SPEED |\\n' > "$OUT/table.md"
  result: table.md
  commit: 0123abc
  date: 2026-01-02
  within: {images/s: 0.1}
---
# Toy

Words stay.

| way | images/s |
|---|---|
| plain | 1,000 |

CIDEr 1.5 in 2 seconds.
"""


@pytest.mark.parametrize(
    ("score", "speed", "said"),
    [(1.5, 1050, 0), (1.51, 1050, "test.CIDEr"), (1.5, 890, "plain: images/s"), (1.5004, 901, 0)],
)
def test_measuring_again_says_how_far_a_figure_is_off(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    score: float,
    speed: int,
    said: str | int,
) -> None:
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    path = tmp_path / "benchmarks/toy.md"
    path.parent.mkdir()
    path.write_text(RECORD.replace("SCORE", str(score)).replace("SPEED", str(speed)))
    assert reproduce.main(["toy"]) == (1 if said else 0)
    out = capfd.readouterr().out
    wrong = [line.split("  ")[0] for line in out.splitlines() if line.endswith("MORE THAN ALLOWED")]
    assert wrong == ([said] if said else [])
    assert "+50.0%" in out

    monkeypatch.setattr(reproduce, "clean_commit", lambda: "89abcde")
    reproduce.main(["toy", "--write"])
    head, body = reproduce.read(path)
    assert head[0]["values"] == {"test.CIDEr": round(score, 3), "seconds": 3}
    assert [entry["commit"] for entry in head] == ["89abcde"] * 2
    assert f"Words stay.\n\n| way | images/s |\n|---|---|\n| plain | {speed} |\n\nCIDEr" in body
    assert "command: |" in path.read_text()
    assert head[0]["machine"] == reproduce.machine()
    path.write_text(path.read_text().replace(reproduce.machine(), "64 cores of another kind"))
    assert reproduce.main(["toy"]) == 0
    assert (
        f"note: recorded on 64 cores of another kind; this is {reproduce.machine()}" in capfd.readouterr().out
    )


def test_a_name_that_is_not_there_is_answered_by_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["quick"]) == 1
    said = "error: quick: no such file of benchmarks/; there are confidence, decoders, full_size, "
    assert capsys.readouterr().err.startswith(said)
