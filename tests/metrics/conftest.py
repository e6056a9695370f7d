"""References that the tests of metrics share, a scorer that stays alive between them, and stand-ins for Java."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bita.metrics import CaptionScorer, java

REFERENCES = {
    3: ["There are two planes at the airport .", "two airplanes are parked on the apron", "Two planes."],
    1: ["A river runs through the forest.", "a curved river and green trees", "the river is dark green"],
    12: ["Many boats are docked in the harbor", "lots of ships, neatly docked!", "a harbor with many boats"],
    7: ["a tennis court next to a road", "There is a tennis court .", "a tennis court surrounded by trees"],
    20: ["dense residential area with many houses", "lots of houses arranged in lines", "many houses"],
}
HYPOTHESES = {
    1: "a river in the forest",
    3: "there are three planes",
    7: "two tennis courts and a road",
    12: "some boats near the sea",
    20: "many houses arranged neatly",
}


@pytest.fixture(scope="session")
def scorer() -> Iterator[CaptionScorer]:
    with CaptionScorer() as scorer:
        yield scorer


@pytest.fixture(scope="session")
def small_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A paraphrase table of one entry, with which METEOR starts at once."""
    path = tmp_path_factory.mktemp("meteor") / "paraphrases.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("0.5\nresidential area\nhousing area\n")
    return path


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], java.Java]:
    """Puts a shell script in the place of Java, on PATH too; it answers `-version` as Java does."""

    def make(body: str) -> java.Java:
        folder = tmp_path / "fake_java"
        folder.mkdir()
        script = folder / "java"
        version = 'case "$*" in *-version*) echo \'openjdk version "17.0.1"\' >&2; exit 0;; esac'
        script.write_text(f"#!/bin/sh\n{version}\n{body}\n", encoding="utf-8")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return java.find_java()

    return make
