"""Choosing a caption by consensus: the one that is most like all that the model might as well have said.

That is the choice of least risk (Kumar and Byrne 2004, "Minimum Bayes-risk decoding") where a caption's gain is its
likeness to what people would have said, and the model's own captions, by their probabilities, stand for people's.
Likeness is CIDEr-D (Vedantam et al. 2015) with every n-gram of the same weight: the mean over n of the clipped cosine
of two captions' counts of n words, times a penalty for a difference in length. No statistics of a dataset are needed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bita.models.language.generation import Candidate

SIZES = 4
SIGMA = 6.0
_WORD = re.compile(r"\w+")


def by_consensus(candidates: Sequence[Candidate], drawn: bool = False) -> list[Candidate]:
    """Captions of one image, the one first that is expected to be most like what is said of it.

    Args:
        candidates: of a search, or drawn ones.
        drawn: whether they were drawn by their probabilities: each then counts once, else by its probability.
    """
    log_probs = np.array([0.0 if drawn else candidate.log_probability for candidate in candidates])
    weighed = likeness([candidate.text for candidate in candidates]) * np.exp(log_probs - log_probs.max())
    # A matrix product would add up equal rows in other orders, and to other sums.
    expected = weighed.sum(axis=1)
    return [candidates[place] for place in np.argsort(-expected, kind="stable")]


def likeness(captions: Sequence[str]) -> npt.NDArray[np.float64]:
    """(K, K): how much each of K captions, by its row, is like each as a reference, from 0 to 1."""
    words = [_WORD.findall(caption.lower()) for caption in captions]
    total = np.zeros((len(captions), len(captions)))
    for size in range(1, SIZES + 1):
        counts = _counts(words, size)
        norms = np.sqrt((counts**2).sum(axis=1))
        clipped = np.minimum(counts[:, None], counts[None]) * counts[None]
        total += clipped.sum(axis=2) / np.maximum(np.outer(norms, norms), 1.0)
    lengths = np.array([len(own) for own in words], np.float64)
    apart = lengths[:, None] - lengths[None]
    return np.asarray(total / SIZES * np.exp(-(apart**2) / (2 * SIGMA**2)))


def _counts(words: Sequence[Sequence[str]], size: int) -> npt.NDArray[np.float64]:
    """(K, G): how often each of G different n-grams stands in each of K captions."""
    found = [Counter(zip(*(own[start:] for start in range(size)), strict=False)) for own in words]
    places = {gram: place for place, gram in enumerate(dict.fromkeys(gram for own in found for gram in own))}
    counts = np.zeros((len(words), max(1, len(places))))
    for row, own in zip(counts, found, strict=True):
        for gram, times in own.items():
            row[places[gram]] = times
    return counts
