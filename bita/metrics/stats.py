"""How sure a score is: bootstrap intervals, paired tests, scores of classes, all from each image's statistics.

BLEU and METEOR of a set are not means over images; they are computed from sums of counts. So what is drawn, swapped or
picked here are images, and the score is computed anew from the sums of theirs. CIDEr's document frequencies stay
those of the whole set of references.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bita.errors import UserError
from bita.metrics.checks import named
from bita.metrics.scores import Scores
from bita.records import Id

Array = NDArray[np.float64]

# METEOR 1.5, English: weights of exact, stem, synonym and paraphrase matches, and its parameters.
STAGES = np.array([1.0, 0.6, 0.8, 0.6])
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75


@dataclass(frozen=True)
class Interval:
    """A score and the bounds between which it lies in `level` of the resampled sets."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much higher the first of two results is.

    Attributes:
        value: first minus second.
        low: lower bound by paired bootstrap.
        high: upper bound.
        p: probability of so large a difference, either way, if the two were exchangeable image by image
            (approximate randomization; Noreen, 1989).
    """

    value: float
    low: float
    high: float
    p: float


def intervals(scores: Scores, samples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, Interval]:
    """Percentile bootstrap intervals: sets of as many images, drawn with replacement.

    Args:
        scores: of one set of hypotheses.
        samples: number of drawn sets.
        seed: of the draws.
        level: share of the drawn sets inside the interval.
    """
    drawn = values(scores, draws(len(scores.per_image), samples, seed))
    return {name: Interval(scores.overall[name], *_bounds(drawn[name], level)) for name in drawn}


def paired_test(
    first: Scores, second: Scores, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Difference]:
    """Metric → difference of two results on the same references, with interval and p.

    Args:
        first: one result.
        second: the other.
        samples: number of drawn sets, and of random exchanges.
        seed: of both.
        level: share of the drawn differences inside the interval.

    Raises:
        UserError: the references are not the same.
    """
    if first.provenance.get("references") != second.provenance.get("references"):
        raise UserError("the two results were scored against different references; they cannot be compared")
    weights = draws(len(first.per_image), samples, seed)
    drawn = values(first, weights), values(second, weights)
    keep = np.random.default_rng(seed).integers(0, 2, weights.shape).astype(np.float64)
    mixed = values(first, keep, (second, 1 - keep)), values(second, keep, (first, 1 - keep))
    differences = {}
    for name in drawn[0].keys() & drawn[1].keys():
        value = first.overall[name] - second.overall[name]
        random = np.abs(mixed[0][name] - mixed[1][name])
        p = (1 + int((random >= abs(value) - 1e-12).sum())) / (1 + samples)
        differences[name] = Difference(value, *_bounds(drawn[0][name] - drawn[1][name], level), p)
    return {name: differences[name] for name in first.overall if name in differences}


def by_class(scores: Scores, classes: Mapping[Id, str]) -> dict[str, dict[str, float]]:
    """Class → scores of its images alone, and their number as `images`; classes in alphabetical order.

    Args:
        scores: of one set of hypotheses.
        classes: image id → class, for every image.

    Raises:
        UserError: an image has no class.
    """
    missing = scores.per_image.keys() - classes.keys()
    if missing:
        raise UserError(f"{named(missing, len(scores.per_image), 'image')} without class")
    names = sorted({classes[image_id] for image_id in scores.per_image})
    weights = np.array([[float(classes[n] == name) for n in scores.per_image] for name in names])
    found = values(scores, weights)
    return {
        name: {**{metric: float(found[metric][k]) for metric in found}, "images": int(weights[k].sum())}
        for k, name in enumerate(names)
    }


def draws(images: int, samples: int, seed: int) -> Array:
    """Return how often each image is in each drawn set: (samples, images), every row adding up to `images`."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), size=samples).astype(np.float64)


def values(scores: Scores, weights: Array, others: tuple[Scores, Array] | None = None) -> dict[str, Array]:
    """Metric → (K,): its value on K weighted sets of images.

    Args:
        scores: of one set of hypotheses.
        weights: (K, images), how often each image counts.
        others: further scores and weights, added in.
    """
    found: dict[str, Array] = {}
    for name, statistics in scores.statistics.items():
        sums = weights @ statistics
        if others is not None:
            if name not in others[0].statistics:
                continue
            sums = sums + others[1] @ others[0].statistics[name]
        found.update(_SCORES[name](sums) if name in _SCORES else {name: _mean(sums)})
    return found


def _bounds(drawn: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _mean(sums: Array) -> Array:
    """(K, 2) sums of values and their number → (K,)."""
    return np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=sums[:, 1] > 0)


def _bleu(sums: Array) -> dict[str, Array]:
    """(K, 10) matches and n-grams for n = 1 to 4, length, reference length → BLEU-1 to 4, each (K,)."""
    matches, ngrams = sums[:, :4] + 1e-15, sums[:, 4:8] + 1e-9
    precision = np.cumprod(matches / ngrams, axis=1) ** (1 / np.arange(1, 5))
    ratio = (sums[:, 8] + 1e-15) / (sums[:, 9] + 1e-9)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return {f"Bleu_{n + 1}": precision[:, n] * penalty for n in range(4)}


def _meteor(sums: Array) -> dict[str, Array]:
    """(K, 23) sums of METEOR's statistics → METEOR (K,).

    The columns are lengths of hypothesis and reference, function words in each; for each of four stages the matched
    content words of each and the matched function words of each; then chunks and matched words of each.
    """
    lengths, functions = sums[:, 0:2], sums[:, 2:4]
    stages = sums[:, 4:20].reshape(-1, 4, 2, 2)
    content, function = stages[:, :, 0], stages[:, :, 1]
    matched = np.einsum("s,ksi->ki", STAGES, DELTA * content + (1 - DELTA) * function)
    total = DELTA * (lengths - functions) + (1 - DELTA) * functions
    share = np.divide(matched, total, out=np.zeros_like(matched), where=total > 0)
    precision, recall = share[:, 0], share[:, 1]
    weighted = ALPHA * precision + (1 - ALPHA) * recall
    mean = np.divide(precision * recall, weighted, out=np.zeros(len(sums)), where=weighted > 0)
    chunks, words = sums[:, 20], sums[:, 21:23]
    both = words.mean(axis=1)
    fragments = np.divide(chunks, both, out=np.zeros(len(sums)), where=both > 0)
    return {"METEOR": mean * (1 - GAMMA * fragments**BETA)}


_SCORES: dict[str, Callable[[Array], dict[str, Array]]] = {"Bleu": _bleu, "METEOR": _meteor}
