"""What a loader hands to a model."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor


class Batch(TypedDict):
    """B images with one caption each."""

    image: Tensor
    """(B, 3, H, W) float32, normalised."""
    text: list[str]
    """B processed captions ("" where a split has none)."""
    image_id: list[int]
    """B ids, unique within the dataset; in training, where datasets mix, unique over all of them."""
