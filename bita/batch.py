"""What a loader hands to a model."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor


class Batch(TypedDict):
    """I images with B captions: one each, or in grouped sampling B/I each, an image's side by side."""

    image: Tensor
    """(I, 3, H, W) float32, normalised."""
    text: list[str]
    """B processed captions ("" where a split has none)."""
    image_id: list[int]
    """B ids, of each caption's image, unique within the dataset; in training, where datasets mix, over all of them."""
