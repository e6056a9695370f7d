"""What a loader hands to a model, and how it gets to where the model is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NotRequired, TypedDict

import torch
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


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; neither the host nor what a GPU has to compute before waits for the copy.

    To a GPU it goes from pinned memory, on a stream of its own; only what is computed afterwards waits for it.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    here, beside = torch.cuda.current_stream(device), _stream_beside(device)
    with torch.cuda.stream(beside):
        moved = tensor.pin_memory().to(device, non_blocking=True)
    here.wait_stream(beside)
    moved.record_stream(here)  # its memory is the other stream's, and is free when this one has done with it
    return moved


@cache
def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
