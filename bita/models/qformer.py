"""BLIP-2's Q-Former: query tokens, text, or both, read an image (Li et al. 2023, section 3.1).

BERT with self-attention over queries and text, and cross-attention to the image for the queries in every second layer.
Three ways to read, one for each loss of stage 1: queries and text apart (contrastive), together in both directions
(matching), and text that is written word by word after the queries (captioning).
Shapes: B batch, Q query tokens, T text tokens, S = Q + T, D hidden width, N image tokens, C image width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bita.config.parts import BridgeSize, QFormerSize
from bita.models.bridge import PAD_ID, Attention, BertBridge, BridgeLayer
from bita.precision import as_autocast


class QFormerLayer(BridgeLayer):
    """Self-attention, cross-attention for the queries, one feed-forward for each kind of token."""

    def __init__(self, size: BridgeSize, image_width: int, *, reads_image: bool, reads_text: bool) -> None:
        super().__init__(size, image_width, reads_image=reads_image, reads_text=reads_text)
        self.attention = Attention(size, size.hidden_size)

    def forward(
        self,
        hidden: Tensor,
        queries: int,
        image: Tensor | None,
        *,
        before: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Run one layer.

        Args:
            hidden: (B, S, D), of which the first `queries` rows are query tokens.
            queries: how many those are.
            image: (B, N, C).
            before: (B, M, D), hidden states in front of `hidden` that are looked at and do not change.
            mask: true where a row of `hidden` may look, over (B, heads, S, M + S).

        Returns:
            (B, S, D).
        """
        source = hidden if before is None else torch.cat([before, hidden], dim=1)
        return self.after_mixing(self.attention(hidden, source, mask), queries, image)


class QFormer(BertBridge):
    """The bridge of BLIP-2; padding is never looked at."""

    Config = QFormerSize
    layer = QFormerLayer
    cross_attention_every = 2

    def forward(
        self, queries: Tensor | None = None, image: Tensor | None = None, text_ids: Tensor | None = None
    ) -> Tensor:
        """See `Bridge.forward`; queries and text see each other."""
        hidden = self.embed(queries, text_ids)
        image = None if image is None else as_autocast(image)
        count = 0 if queries is None else queries.shape[1]
        mask = None
        if text_ids is not None:
            present = text_ids != PAD_ID
            mask = torch.cat([present.new_ones(len(present), count), present], dim=1)[:, None, None]
        for layer in self.layers:
            hidden = layer(hidden, count, image, mask=mask)
        return hidden

    def read(self, queries: Tensor, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the queries' output (B, Q, D), and what each layer was given, for `write`."""
        hidden, image = self.embed(queries), as_autocast(image)
        seen = []
        for layer in self.layers:
            seen.append(hidden)
            hidden = layer(hidden, queries.shape[1], image)
        return hidden, seen

    def write(self, text_ids: Tensor, seen: list[Tensor]) -> Tensor:
        """Text after the queries, which do not see it: each token looks at all queries and at the text up to itself.

        The same as one pass over both under a multimodal causal mask, without reading the image again.

        Args:
            text_ids: (B, T), padded on the right, where no token looks.
            seen: the queries' hidden states from `read`, a (B, Q, D) for each layer.

        Returns:
            (B, T, D).
        """
        hidden = self.embed(text_ids=text_ids)
        length, count = text_ids.shape[1], seen[0].shape[1]
        mask = torch.ones(length, count + length, dtype=torch.bool, device=text_ids.device).tril(count)
        for layer, before in zip(self.layers, seen, strict=True):
            hidden = layer(hidden, 0, None, before=before, mask=mask)
        return hidden
