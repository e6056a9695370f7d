"""What must hold before anything is scored: every image has references and exactly one hypothesis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bita.errors import UserError
from bita.records import Id, half_pair, ordered

SHOWN, WIDE = 5, 80
"""Ids in a message, and characters of one."""


def check_ids(references: Mapping[Any, Sequence[str]], hypotheses: Mapping[Any, str]) -> None:
    """See that every image has references and a hypothesis, all of them text.

    Raises:
        UserError: no images; an image without references or without hypothesis; a hypothesis for an unknown image;
            a caption that is not text.
    """
    if not references:
        raise UserError("nothing to score: there are no references")
    odd = [image_id for image_id, captions in references.items() if not _is_text(captions)]
    if odd:
        raise UserError(f"{named(odd, len(references), 'image')} with references that are not lists of text")
    bare = [image_id for image_id, captions in references.items() if not captions]
    if bare:
        raise UserError(
            f"{named(bare, len(references), 'image')} without references: give them, or leave these out"
        )
    missing = references.keys() - hypotheses.keys()
    if missing:
        raise UserError(
            f"{named(missing, len(references), 'image')} without hypothesis: each needs one caption"
        )
    unknown = hypotheses.keys() - references.keys()
    if unknown:
        raise UserError(f"{named(unknown, len(hypotheses), 'hypothesis')} for images that have no references")
    odd = [image_id for image_id, caption in hypotheses.items() if not isinstance(caption, str)]
    if odd:
        raise UserError(f"{named(odd, len(hypotheses), 'hypothesis')} not text")
    odd = [n for n, texts in references.items() if any(map(half_pair, [*texts, hypotheses[n]]))]
    if odd:
        raise UserError(
            f"{named(odd, len(references), 'image')} with half of a surrogate pair in a caption; take it out"
        )


def named(ids: Iterable[Id], total: int, noun: str) -> str:
    """Such as `3 of 210 images (ids 4, 17, 99)`; at most five ids are named."""
    chosen = ordered(ids)
    plural = {"hypothesis": "hypotheses"}.get(noun, f"{noun}s")
    shown = ", ".join(str(image_id)[:WIDE] for image_id in chosen[:SHOWN]) + (
        ", …" if len(chosen) > SHOWN else ""
    )
    return f"{len(chosen)} of {total} {plural} ({'id' if len(chosen) == 1 else 'ids'} {shown})"


def _is_text(captions: object) -> bool:
    return isinstance(captions, list | tuple) and all(isinstance(caption, str) for caption in captions)
