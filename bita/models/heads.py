"""What stage 1 puts on top of the bridge.

Shapes: B batch, N image tokens, C image width, T text tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bita.models.bridge import LAYER_NORM_EPS, PAD_ID, init_bert


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


class WordHead(nn.Module):
    """A caption's words, in no order, told from the mean image token: the shortest way from a caption to the encoder.

    After Joulin et al. 2016 ("Learning visual features from large weakly supervised data"), section 3, with a hidden
    layer, since what a word looks like depends on others: three roofs are not like three ships.
    """

    def __init__(self, image_width: int, vocab_size: int, hidden: int = 512) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(image_width),
            nn.Linear(image_width, hidden),
            nn.GELU(),
            nn.Linear(hidden, vocab_size),
        )

    def forward(self, image_tokens: Tensor, text_ids: Tensor) -> Tensor:
        """(B, N, C) and padded ids (B, T), [CLS] first → the mean cross-entropy of a caption's words, a scalar."""
        logits: Tensor = self.layers(image_tokens.mean(dim=1))
        words, present = text_ids[:, 1:], (text_ids[:, 1:] != PAD_ID).float()
        likely = logits.float().log_softmax(dim=1).gather(1, words)
        return -((likely * present).sum(dim=1) / present.sum(dim=1)).mean()
