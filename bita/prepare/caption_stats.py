"""What the captions of a dataset are like: lengths, vocabulary, repeats, odd characters, likely typing errors."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bita.records import Id, has_words

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
RARE, COMMON = 3, 50
"""A typing-error candidate occurs at most RARE times and is one edit from a word that occurs COMMON times."""


def caption_statistics(captions: Mapping[Id, Sequence[str]]) -> dict[str, Any]:
    """Return the statistics of `captions` (by image id) as a JSON-ready dictionary."""
    texts = [caption for group in captions.values() for caption in group]
    words = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    lengths = sorted(len(_WORD.findall(text)) for text in texts)
    groups = [[_plain(text) for text in group] for group in captions.values()]
    return {
        "captions": len(texts),
        "distinct_captions": len({_plain(text) for text in texts}),
        "captions_an_image": dict(sorted(Counter(len(group) for group in groups).items())),
        "images_with_repeats": sum(len(set(group)) < len(group) for group in groups),
        "images_with_one_caption_repeated": sum(len(group) > 1 and len(set(group)) == 1 for group in groups),
        "words": {
            "vocabulary": len(words),
            "once": sum(count == 1 for count in words.values()),
            "shortest": lengths[0],
            "mean": round(sum(lengths) / len(lengths), 2),
            "median": lengths[len(lengths) // 2],
            "longest": lengths[-1],
        },
        "without_a_word": [text for text in texts if not has_words(text)],
        "short": [text for text in dict.fromkeys(texts) if 0 < len(_WORD.findall(text)) <= 3],
        "non_ascii": [text for text in dict.fromkeys(texts) if not text.isascii()],
        "odd_white_space": sum(text != " ".join(text.split()) for text in texts),
        "typing_error_candidates": typing_errors(words),
    }


def typing_errors(words: Mapping[str, int]) -> dict[str, str]:
    """Return rare words that are one edit from a common one, each with that word; inflections are passed over."""
    common = {word for word, count in words.items() if count >= COMMON and len(word) >= 4}
    found = {}
    for word in sorted(word for word, count in words.items() if count <= RARE and len(word) >= 5):
        near = [other for other in _one_edit(word) if other in common and not _inflected(word, other)]
        if near:
            found[word] = max(sorted(set(near)), key=lambda other: words[other])
    return found


def _plain(text: str) -> str:
    """Return a caption as far as repeats are concerned: case, spaces and the full stop at the end do not count."""
    return " ".join(text.lower().split()).rstrip(" .")


def _one_edit(word: str) -> list[str]:
    """Return all strings one deletion, swap of neighbours, replacement or insertion away."""
    splits = [(word[:place], word[place:]) for place in range(len(word) + 1)]
    letters = string.ascii_lowercase
    edits = [left + right[1:] for left, right in splits if right]
    edits += [left + right[1] + right[0] + right[2:] for left, right in splits if len(right) > 1]
    edits += [left + letter + right[1:] for left, right in splits if right for letter in letters]
    edits += [left + letter + right for left, right in splits for letter in letters]
    return edits


def _inflected(word: str, other: str) -> bool:
    """Return whether the two differ in a letter at the end only (plural, tense)."""
    return word[:-1] == other or other[:-1] == word or word[:-1] == other[:-1]
