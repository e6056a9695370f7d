"""The interactive Fourier Transformer (IFT): query tokens, text, or both, read an image.

BERT's layout with self-attention replaced by a Fourier mix (FNet), and cross-attention to the image for the queries.
Shapes: B batch, Q query tokens, T text tokens, S = Q + T, D hidden width, N image tokens, C image width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from bita.config.parts import BridgeSize, IFTSize
from bita.models.bridge import LAYER_NORM_EPS, BertBridge, BridgeLayer
from bita.precision import as_autocast, in_float32


class FourierMix(nn.Module):
    """h ← LN(h + Re FFT(h)), the unnormalised transform over sequence and width, always in float32.

    No mask enters: padding mixes in, and queries and text meet here.
    """

    def __init__(self, size: BridgeSize) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size.hidden_size, eps=LAYER_NORM_EPS)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, D) → (B, S, D)."""
        with in_float32(hidden.device):
            mixed: Tensor = torch.fft.fft2(hidden.float()).real
            return self.norm(hidden.float() + mixed)


class IFTLayer(BridgeLayer):
    """Fourier mix over everything, cross-attention for the queries, one feed-forward for each kind of token."""

    def __init__(self, size: BridgeSize, image_width: int, *, reads_image: bool, reads_text: bool) -> None:
        super().__init__(size, image_width, reads_image=reads_image, reads_text=reads_text)
        self.mix = FourierMix(size)

    def forward(self, hidden: Tensor, queries: int, image: Tensor | None) -> Tensor:
        """(B, S, D), of which the first `queries` rows are query tokens, and (B, N, C) → (B, S, D)."""
        return self.after_mixing(self.mix(hidden), queries, image)


class IFT(BertBridge):
    """The bridge that BITA published, with cross-attention in every layer."""

    Config = IFTSize
    layer = IFTLayer
    cross_attention_every = 1
    maps_from: ClassVar[dict[str, str]] = {"qformer": "qformer_to_ift"}
    fresh_beside_bert: ClassVar[str] = "cross-attention and Fourier norms"

    def forward(
        self, queries: Tensor | None = None, image: Tensor | None = None, text_ids: Tensor | None = None
    ) -> Tensor:
        """See `Bridge.forward`; padding takes part, so pad texts to a fixed length."""
        hidden = self.embed(queries, text_ids)
        image = None if image is None else as_autocast(image)
        for layer in self.layers:
            hidden = layer(hidden, 0 if queries is None else queries.shape[1], image)
        return hidden
