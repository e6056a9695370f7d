"""What stage 1 puts on top of the bridge.

Shapes: B batch, N image tokens, C image width, T text tokens, D hidden width, E embedding width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bita.models.bridge import LAYER_NORM_EPS, init_bert


class MaskedLanguageHead(nn.Module):
    """BERT's word predictor, whose output weights are the word embedding; IFT checkpoints carry it along unused."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.apply(init_bert)

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """(…, D) and the word embedding's weights (V, D) → logits (…, V)."""
        return F.linear(self.norm(F.gelu(self.dense(hidden))), words, self.bias)


class BootstrapHead(nn.Module):
    """Mean image token and mean word embedding, side by side: the shortest way from a caption to the encoder."""

    def __init__(self, image_width: int, text_width: int, embed_dim: int) -> None:
        super().__init__()
        self.image_proj = nn.Linear(image_width, embed_dim)
        self.text_proj = nn.Sequential(
            nn.LayerNorm(text_width),
            nn.Linear(text_width, 2 * embed_dim),
            nn.GELU(),
            nn.Linear(2 * embed_dim, embed_dim),
        )

    def forward(self, image_tokens: Tensor, words: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C), word embeddings (B, T, D), which of them count (B, T) → (B, 1, E), (B, E), unit length."""
        weights = present.float()[..., None]
        mean = (words * weights).sum(dim=1) / weights.sum(dim=1)
        image = F.normalize(self.image_proj(image_tokens.mean(dim=1, keepdim=True)), dim=-1)
        return image, F.normalize(self.text_proj(mean), dim=-1)
