"""What a set of captions is like, without references: variety, length, repetition, and what is new in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


def diversity(captions: Sequence[str]) -> dict[str, float]:
    """Variety of tokenized captions.

    Args:
        captions: one for each image, tokens joined by spaces.

    Returns:
        `distinct_1` to `distinct_4`: distinct n-grams over all n-grams (Li et al., 2016); `vocabulary`: distinct
        words; `words`: words a caption; `captions`: distinct captions; `identical`: share of images whose
        caption another image has too; `most_frequent`: share of images with the most frequent caption.
    """
    words = [caption.split() for caption in captions]
    counts = Counter(captions)
    images = max(1, len(captions))
    found = {f"distinct_{n}": _distinct(words, n) for n in range(1, 5)}
    return found | {
        "vocabulary": float(len({word for of_caption in words for word in of_caption})),
        "words": sum(map(len, words)) / images,
        "captions": float(len(counts)),
        "identical": sum(count for count in counts.values() if count > 1) / images,
        "most_frequent": max(counts.values(), default=0) / images,
    }


def novelty(captions: Sequence[str], training: Iterable[str]) -> float:
    """Share of captions that no training image has, both tokenized alike."""
    known = set(training)
    return sum(caption not in known for caption in captions) / max(1, len(captions))


def _distinct(words: Sequence[Sequence[str]], n: int) -> float:
    ngrams = [tuple(caption[k : k + n]) for caption in words for k in range(len(caption) - n + 1)]
    return len(set(ngrams)) / max(1, len(ngrams))
