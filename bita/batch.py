"""What a loader hands to a model."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from torch import Tensor


class Batch(TypedDict):
    """I images with B captions: one each, or in grouped sampling B/I each, an image's side by side."""

    image: NotRequired[Tensor]
    """(I, 3, H, W) float32, normalised."""
    tokens: NotRequired[Tensor]
    """(I, N, C) float16, in the place of `image`: what the frozen encoder once said of it."""
    text: list[str]
    """B processed captions ("" where a split has none)."""
    image_id: list[int]
    """B numbers, of each caption's image, unique within the dataset; in training, where datasets mix, over all of them.
    A dataset says which of its own ids they stand for."""
