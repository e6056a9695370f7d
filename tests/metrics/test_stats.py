"""Intervals and tests against calculations of another kind; scores of classes against scoring a class alone."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest

from bita.errors import UserError
from bita.metrics import CaptionScorer, Scores
from bita.metrics.stats import by_class, draws, intervals, paired_test, values

from .conftest import HYPOTHESES, REFERENCES
from .test_equality import hypothesis_sets, real_references


@pytest.fixture(scope="module")
def scores(scorer: CaptionScorer) -> Scores:
    return scorer.score(REFERENCES, {**HYPOTHESES, 20: "", 12: REFERENCES[12][2]})


def fake(values: list[float], references: str = "same") -> Scores:
    """Scores of one metric that is a mean over images."""
    return Scores(
        {"CIDEr": float(np.mean(values))},
        {n: {"CIDEr": value} for n, value in enumerate(values)},
        provenance={"references": references},
        statistics={"CIDEr": np.array([[value, 1.0] for value in values])},
    )


def test_statistics_add_up_to_the_scores(scores: Scores) -> None:
    """BLEU and METEOR from sums, as the scorers computed them: of the set, and of each image alone."""
    whole = values(scores, np.ones((1, 5)))
    assert set(whole) == set(scores.overall)
    for name, value in scores.overall.items():
        assert whole[name][0] == pytest.approx(value, abs=1e-12), name
    each = values(scores, np.eye(5))
    for k, of_image in enumerate(scores.per_image.values()):
        for name, value in of_image.items():
            assert each[name][k] == pytest.approx(value, abs=1e-7), (name, k)


def test_interval_equals_an_independent_bootstrap() -> None:
    rng = random.Random(3)
    found = [rng.gauss(1, 0.5) for _ in range(60)]
    interval = intervals(fake(found), samples=4000)["CIDEr"]
    means = sorted(math.fsum(rng.choices(found, k=60)) / 60 for _ in range(4000))
    assert interval.value == pytest.approx(math.fsum(found) / 60)
    assert interval.low == pytest.approx(means[100], abs=0.01)
    assert interval.high == pytest.approx(means[3900], abs=0.01)
    spread = 1.96 * float(np.std(found)) / math.sqrt(60)
    assert interval.high - interval.low == pytest.approx(2 * spread, rel=0.06)


def test_draws_have_the_size_of_the_set_and_follow_the_seed() -> None:
    drawn = draws(7, 50, seed=1)
    assert (drawn.sum(axis=1) == 7).all()
    assert (drawn == draws(7, 50, seed=1)).all()
    assert (drawn != draws(7, 50, seed=2)).any()


def test_randomization_p_equals_all_sign_flips() -> None:
    """With eight images every exchange can be tried."""
    rng = random.Random(5)
    first = [rng.random() for _ in range(8)]
    second = [value + 0.15 * rng.random() - 0.02 for value in first]
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    flips = [sum(gap if k >> n & 1 else -gap for n, gap in enumerate(gaps)) for k in range(256)]
    exact = sum(abs(flip) >= abs(sum(gaps)) - 1e-12 for flip in flips) / 256
    found = paired_test(fake(first), fake(second), samples=20000)["CIDEr"]
    assert found.p == pytest.approx(exact, abs=0.01)
    assert found.value == pytest.approx(sum(gaps) / 8)
    assert found.low < found.value < found.high < 0


def test_equal_results_do_not_differ(scores: Scores) -> None:
    for found in paired_test(scores, scores, samples=50).values():
        assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_other_references_are_refused() -> None:
    with pytest.raises(UserError, match="different references"):
        paired_test(fake([1.0, 2.0]), fake([1.0, 2.0], references="other"))


def test_classes_are_scored_as_if_alone(scorer: CaptionScorer, scores: Scores) -> None:
    classes = {1: "nature", 3: "traffic", 7: "town", 12: "traffic", 20: "town"}
    found = by_class(scores, classes)
    assert [(name, values["images"]) for name, values in found.items()] == [
        ("nature", 1),
        ("town", 2),
        ("traffic", 2),
    ]
    alone = scorer.score({n: REFERENCES[n] for n in (3, 12)}, {3: HYPOTHESES[3], 12: REFERENCES[12][2]})
    for name in ("Bleu_1", "Bleu_4", "METEOR", "ROUGE_L"):
        assert found["traffic"][name] == pytest.approx(alone.overall[name], abs=1e-12), name
    cider = (scores.per_image[3]["CIDEr"] + scores.per_image[12]["CIDEr"]) / 2
    assert found["traffic"]["CIDEr"] == pytest.approx(cider)
    with pytest.raises(UserError, match=r"1 of 5 images \(id 20\) without class"):
        by_class(scores, {n: name for n, name in classes.items() if n != 20})


@pytest.mark.long
def test_statistics_add_up_on_real_captions(bita_data: Path) -> None:
    references = real_references(bita_data / "ucm_captions" / "dataset.json")
    with CaptionScorer() as scorer:
        for hypotheses in hypothesis_sets(references, 2).values():
            scores = scorer.score(references, hypotheses)
            whole = values(scores, np.ones((1, len(references))))
            each = values(scores, np.eye(len(references)))
            for name, value in scores.overall.items():
                assert whole[name][0] == pytest.approx(value, abs=1e-12), name
                of_images = [found[name] for found in scores.per_image.values()]
                assert each[name] == pytest.approx(of_images, abs=1e-7), name
