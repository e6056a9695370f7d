"""What a loader hands to a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NotRequired, TypedDict

from torch import Tensor


@dataclass(frozen=True)
class Written:
    """Captions that a model wrote itself for I images, R each, side by side.

    Attributes:
        ids: (I·R, T) token ids, padded on the right.
        labels: (I·R, T), with the label of no loss where nothing was written.
        weights: (I·R,) what each caption's log-likelihood counts: its advantage.
        caption_weight: what the loss on the batch's own captions counts beside.
    """

    ids: Tensor
    labels: Tensor
    weights: Tensor
    caption_weight: float


class Batch(TypedDict):
    """I images with B captions: one each, or in grouped sampling B/I each, an image's side by side."""

    image: NotRequired[Tensor]
    """(I, 3, H, W) float32, normalised."""
    tokens: NotRequired[Tensor]
    """(I, N, C) float16, in the place of `image`: what the frozen encoder once said of it."""
    draw: NotRequired[list[int]]
    """I random numbers of training images: what is drawn for an image beyond its crop starts from its own."""
    written: NotRequired[Written]
    """What a model is to learn from in the place of `text` (`bita.tasks.scst`)."""
    text: list[str]
    """B processed captions ("" where a split has none)."""
    image_id: list[int]
    """B numbers, of each caption's image, unique within the dataset; in training, where datasets mix, over all of them.
    A dataset says which of its own ids they stand for."""
