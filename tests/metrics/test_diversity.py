"""Variety and novelty of captions, counted by hand."""

from __future__ import annotations

import pytest

from bita.metrics.diversity import diversity, novelty

CAPTIONS = ["a river", "a river", "two planes at a gate", ""]


def test_counts() -> None:
    found = diversity(CAPTIONS)
    assert found["distinct_1"] == pytest.approx(6 / 9)
    assert found["distinct_2"] == pytest.approx(5 / 6)
    assert found["distinct_4"] == 1.0
    assert (found["vocabulary"], found["words"], found["captions"]) == (6, 2.25, 3)
    assert (found["identical"], found["most_frequent"]) == (0.5, 0.5)


def test_nothing_to_count() -> None:
    assert set(diversity([]).values()) == {0.0}


def test_novelty() -> None:
    assert novelty(CAPTIONS, ["a river", "a lake"]) == 0.5
    assert novelty([], []) == 0.0
