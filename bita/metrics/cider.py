"""CIDEr-D as pycocoevalcap computes it, with the references' side computed once for all hypotheses that follow.

Every operation is done on the same numbers and in the same order as there, so that scores agree to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Ngram = tuple[str, ...]
Counts = Mapping[Ngram, int]

SIZES = 4
SIGMA = 6.0


@dataclass(frozen=True)
class _Vector:
    """Weights of a caption's n-grams by n, their norms, and the number of its bigrams, which stands for its length."""

    weights: list[dict[Ngram, float]]
    norms: list[float]
    length: int


class CiderReferences:
    """Document frequencies and vectors of a set of references.

    Args:
        references: for each image its tokenized captions.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        from pycocoevalcap.cider.cider_scorer import precook

        counts = [[precook(caption, SIZES) for caption in captions] for captions in references]
        self._frequency: dict[Ngram, float] = {}
        for of_image in counts:
            for ngram in {ngram for of_caption in of_image for ngram in of_caption}:
                self._frequency[ngram] = self._frequency.get(ngram, 0.0) + 1.0
        self._log_images = float(np.log(float(len(references))))
        self._log_frequency = {df: float(np.log(max(1.0, df))) for df in {0.0, *self._frequency.values()}}
        self._vectors = [[self._vector(of_caption) for of_caption in of_image] for of_image in counts]

    def score(self, hypotheses: Sequence[str]) -> tuple[float, list[float]]:
        """CIDEr-D of the whole set and of each image.

        Args:
            hypotheses: one tokenized caption for each image, in the order of the references.

        Raises:
            ValueError: they are more or fewer than the images.
        """
        if len(hypotheses) != len(self._vectors):
            raise ValueError(f"{len(hypotheses)} hypotheses for {len(self._vectors)} images")
        scores = [self.score_of(image, hypothesis) for image, hypothesis in enumerate(hypotheses)]
        return float(np.mean(np.array(scores))), scores

    def score_of(self, image: int, hypothesis: str) -> float:
        """CIDEr-D of a tokenized caption of the image-th of the references' images."""
        from pycocoevalcap.cider.cider_scorer import precook

        vector, references = self._vector(precook(hypothesis, SIZES)), self._vectors[image]
        sums = [0.0] * SIZES
        for reference in references:
            for n, value in enumerate(_similarity(vector, reference)):
                sums[n] += value
        return float(np.mean(np.array(sums)) / len(references) * 10.0)

    def _vector(self, counts: Counts) -> _Vector:
        weights: list[dict[Ngram, float]] = [{} for _ in range(SIZES)]
        squares = [0.0] * SIZES
        length = 0
        for ngram, count in counts.items():
            n = len(ngram) - 1
            weight = float(count) * (self._log_images - self._log_frequency[self._frequency.get(ngram, 0.0)])
            weights[n][ngram] = weight
            squares[n] += pow(weight, 2)
            if n == 1:
                length += count
        return _Vector(weights, [math.sqrt(square) for square in squares], length)


def _similarity(hypothesis: _Vector, reference: _Vector) -> list[float]:
    """Clipped cosine for each n, times a Gaussian penalty on the difference in length."""
    delta = float(hypothesis.length - reference.length)
    penalty = np.e ** (-(delta**2) / (2 * SIGMA**2))
    values = []
    for n in range(SIZES):
        known = reference.weights[n]
        value = 0.0
        for ngram, weight in hypothesis.weights[n].items():
            if ngram in known:
                value += min(weight, known[ngram]) * known[ngram]
        norms = hypothesis.norms[n], reference.norms[n]
        if norms[0] != 0 and norms[1] != 0:
            value /= norms[0] * norms[1]
        values.append(value * penalty)
    return values
