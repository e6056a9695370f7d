"""Consensus: likeness by the formula, who is chosen, and that an image's views are read as one."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from bita.models.language.consensus import by_consensus, likeness
from bita.models.language.generation import Candidate
from bita.models.vision import turned

SAID = ["two planes are parked", "Two planes are parked.", "two planes", "a river, a river and a bridge", ""]


def by_the_formula(caption: str, reference: str) -> float:
    """CIDEr-D of one reference, every n-gram of weight 1, pair by pair and n-gram by n-gram."""
    own, other = (text.lower().replace(".", "").replace(",", "").split() for text in (caption, reference))
    found = []
    for n in range(1, 5):
        counts, wanted = (
            Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for words in (own, other)
        )
        norms = math.sqrt(sum(c * c for c in counts.values()) * sum(c * c for c in wanted.values()))
        product = sum(min(counts[gram], times) * times for gram, times in wanted.items())
        found.append(product / norms if norms else 0.0)
    return sum(found) / 4 * math.exp(-((len(own) - len(other)) ** 2) / 72)


def test_likeness_is_the_formula() -> None:
    found = likeness(SAID)
    for row, caption in enumerate(SAID):
        for column, reference in enumerate(SAID):
            assert found[row, column] == pytest.approx(by_the_formula(caption, reference), abs=1e-12)
    assert found[0, 1] == pytest.approx(1.0)
    assert found[0, 3] == 0


def candidates(*captions: tuple[str, float]) -> list[Candidate]:
    return [Candidate(text, [5, 6], math.log(probability)) for text, probability in captions]


def test_the_caption_that_others_agree_with_is_chosen_not_the_likeliest() -> None:
    written = candidates(
        ("a green meadow", 0.3),
        ("many planes are in an airport", 0.25),
        ("many planes are in the airport", 0.2),
    )
    assert [c.text[:6] for c in by_consensus(written)] == ["many p", "many p", "a gree"]
    assert by_consensus(written)[0].log_probability == math.log(0.25)
    sure = candidates(("a green meadow", 0.8), ("many planes", 0.1), ("many planes here", 0.05))
    assert by_consensus(sure)[0].text == "a green meadow"


def test_drawn_captions_count_once_each_whatever_their_probability() -> None:
    drawn = candidates(("a green meadow", 0.9), ("many planes", 0.01), ("many planes", 0.01))
    assert by_consensus(drawn, drawn=True)[0].text == "many planes"
    assert by_consensus(drawn)[0].text == "a green meadow"


def test_equal_captions_stay_in_their_order() -> None:
    """To the last bit they are equally like the others: rounding must not put the less likely tokens first."""
    pool = [" ".join("abcdefgh"[(7 * k + 3 * i * k) % 8] for i in range(k % 6 + 2)) for k in range(7)]
    for count in range(2, 21):
        texts = [pool[(count * k + k * k) % len(pool)] for k in range(count)]
        written = [Candidate(text, [place], -0.37 * place) for place, text in enumerate(texts)]
        for drawn in (False, True):
            chosen = by_consensus(written, drawn)
            for text in set(texts):
                places = [c.ids[0] for c in chosen if c.text == text]
                assert places == sorted(places)


def test_without_words_the_order_stays() -> None:
    assert [c.text for c in by_consensus(candidates(("", 0.5), (".", 0.4)))] == ["", "."]
    assert len(by_consensus(candidates(("one", 0.2)))) == 1


def test_views_are_the_eight_of_a_square() -> None:
    images = torch.arange(2 * 3 * 5 * 5.0).view(2, 3, 5, 5)
    views = list(turned(images, 8))
    assert torch.equal(views[0], images)
    assert torch.equal(views[2], images.flip((2, 3)))
    assert torch.equal(views[4], images.flip(3))
    again = turned(images.rot90(1, (2, 3)).flip(2), 8)  # a turned image has the same eight
    sets = [{tuple(view[1].flatten().tolist()) for view in found} for found in (views, again)]
    assert len(sets[0]) == 8
    assert sets[0] == sets[1]
