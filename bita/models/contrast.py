"""What stage 1 compares: similarities of images and texts, which pairs are positives, hard negatives.

Shapes: B images and captions of this process, W processes, M = W·B, Q query tokens, D hidden width, E embedding width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bita.precision import in_float32


@dataclass(frozen=True)
class Comparison:
    """The pairs of this process against those of all.

    Attributes:
        to_text: (B, W·B) similarity of this process's images and all texts, over the temperature.
        to_image: (B, W·B) the same of its texts and all images.
        targets: (B,) column of each row's own partner.
        positives: (B, W·B) True where a column is a positive of a row.
    """

    to_text: Tensor
    to_image: Tensor
    targets: Tensor
    positives: Tensor


def caption_number(text: str) -> int:
    """Return a 63-bit number that equal captions share, on every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def top1_accuracy(scores: Tensor, positives: Tensor) -> Tensor:
    """Share of rows whose highest score is a positive's; both (B, M)."""
    return positives.gather(1, scores.detach().argmax(dim=1, keepdim=True)).float().mean()


def unit(projection: nn.Linear, hidden: Tensor) -> Tensor:
    """(…, D) → (…, E) float32 of unit length, under autocast too."""
    with in_float32(hidden.device):
        return F.normalize(projection(hidden.float()), dim=-1)


def similarity(images: Tensor, texts: Tensor) -> Tensor:
    """(A, Q, E), (B, E) → (A, B) float32: the best of an image's queries for each text, as one matrix product."""
    with in_float32(images.device):
        scores = images.float().flatten(0, 1) @ texts.float().T
    return scores.unflatten(0, images.shape[:2]).amax(dim=1)


@torch.no_grad()
def draw_negatives(scores: Tensor, positives: Tensor, *, sample: bool) -> tuple[Tensor, Tensor]:
    """Return a negative for each row, drawn by its softmax over all columns, plus a little for every column.

    Args:
        scores: (B, M) similarities over the temperature.
        positives: (B, M) True where a column must not be drawn.
        sample: false takes the likeliest.

    Returns:
        (B,) columns, and (B,) whether the row had any to draw from; the column means nothing where it had none.
    """
    weights = (scores.float().softmax(dim=1) + 1e-4).masked_fill(positives, 0.0)
    if sample:  # the first of exponential clocks, as torch.multinomial draws too, which waits for the device
        weights = weights / torch.empty_like(weights).exponential_()
    return weights.argmax(dim=1), ~positives.all(dim=1)
