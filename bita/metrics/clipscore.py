"""CLIPScore: how well a caption fits its image in the eyes of a stage-1 model, without references or with them.

Hessel et al., "CLIPScore: a reference-free evaluation metric for image captioning", EMNLP 2021. An image here has one
vector for each query; as in training, the query that fits the text best counts. The values depend on the model:
they rank captions under one model, and say nothing across models.

Shapes: N images, Q query tokens, E embedding width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bita.models.bita_itc import BitaITC

SCALE = 2.5


def clip_score(images: Tensor, texts: Tensor) -> Tensor:
    """2.5 · max(0, best query's cosine) for each pair: (N,).

    Args:
        images: (N, Q, E), unit length.
        texts: (N, E), unit length.
    """
    best = torch.einsum("nqe,ne->nq", images, texts).amax(dim=1)
    return SCALE * best.clamp(min=0)


def ref_clip_score(images: Tensor, texts: Tensor, references: list[Tensor]) -> Tensor:
    """Harmonic mean of CLIPScore and the caption's best cosine with a reference, 0 at least: (N,).

    Args:
        images: (N, Q, E), unit length.
        texts: (N, E), unit length.
        references: N tensors (R, E) of unit length, R references of that image.
    """
    score = clip_score(images, texts)
    near = torch.stack(
        [(own @ text).amax().clamp(min=0) for own, text in zip(references, texts, strict=True)]
    )
    total = score + near
    return torch.where(total > 0, 2 * score * near / total.clamp(min=1e-12), torch.zeros_like(total))


@torch.no_grad()
def model_clip_score(model: BitaITC, images: Tensor, captions: list[str]) -> Tensor:
    """CLIPScore of N captions under a stage-1 model, which should be in evaluation mode: (N,).

    Args:
        model: arch `bita_former`, with its tokenizer.
        images: (N, 3, H, W), as the evaluation processor makes them.
        captions: as the text processor makes them.
    """
    return clip_score(model.image_features(images), model.text_features(model.tokenize(captions)))
