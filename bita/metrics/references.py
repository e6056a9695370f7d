"""A set of references, tokenized, with what metrics need of it computed once for all hypotheses that follow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from bita.errors import UserError
from bita.metrics.checks import named
from bita.metrics.cider import CiderReferences
from bita.metrics.tokenizer import Tokenizer
from bita.records import Id, K, ordered


class ReferenceSet:
    """The references of a split.

    References without a word are left out, and noted.

    Args:
        references: image id → captions.
        tokenizer: tokenizes them.

    Attributes:
        ids: ascending.
        tokens: image id → tokenized captions.
        given: image id → captions as they were written.
        notes: what was left out.
        digest: sha256 over ids and captions as given.
        meteor: (image id, hypothesis) → METEOR's statistics, filled as hypotheses come.

    Raises:
        UserError: an image has no reference with a word; the tokenizer failed.
    """

    def __init__(self, references: Mapping[K, Sequence[str]], tokenizer: Tokenizer) -> None:
        captions: dict[Id, Sequence[str]] = {
            image_id: references[image_id] for image_id in ordered(references)
        }
        self.ids = list(captions)
        self.digest = references_hash(references)
        self.given: dict[Id, list[str]] = {image_id: list(texts) for image_id, texts in references.items()}
        self.captions = sum(map(len, captions.values()))
        tokens = iter(tokenizer.tokenize([text for texts in captions.values() for text in texts]))
        every = {image_id: [next(tokens) for _ in captions[image_id]] for image_id in self.ids}
        self.tokens = {image_id: [text for text in texts if text] for image_id, texts in every.items()}
        bare = [image_id for image_id, texts in self.tokens.items() if not texts]
        if bare:
            raise UserError(
                f"{named(bare, len(self.ids), 'image')} without references: give them, or leave these out"
            )
        short = [image_id for image_id in self.ids if len(self.tokens[image_id]) < len(every[image_id])]
        self.notes = (
            [f"references without a word left out: {named(short, len(self.ids), 'image')}"] if short else []
        )
        self.meteor: dict[tuple[Id, str], str] = {}

    @cached_property
    def distinct(self) -> dict[Id, list[str]]:
        """Image id → its captions without repeats, for metrics that take the best reference."""
        return {image_id: list(dict.fromkeys(texts)) for image_id, texts in self.tokens.items()}

    @cached_property
    def cider(self) -> CiderReferences:
        """Document frequencies and vectors."""
        return CiderReferences(list(self.tokens.values()))

    @cached_property
    def bleu(self) -> list[Any]:
        """N-gram counts and lengths, as pycocoevalcap keeps them."""
        from pycocoevalcap.bleu.bleu_scorer import cook_refs

        return [cook_refs(texts) for texts in self.distinct.values()]


def references_hash(references: Mapping[K, Sequence[str]]) -> str:
    """sha256 over ids and captions, ids ascending, captions of an image in their order."""
    content = [[image_id, list(references[image_id])] for image_id in ordered(references)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
