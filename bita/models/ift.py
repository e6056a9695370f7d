"""The interactive Fourier Transformer (IFT): query tokens, text, or both, read an image.

BERT's layout with self-attention replaced by a Fourier mix (FNet), and cross-attention to the image for the queries.
Shapes: B batch, Q query tokens, T text tokens, S = Q + T, D hidden width, N image tokens, C image width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bita.schema import BridgeSize

LAYER_NORM_EPS = 1e-12


class FourierMix(nn.Module):
    """h ← LN(h + Re FFT(h)), the unnormalised transform over sequence and width, always in float32.

    No mask enters: padding mixes in, and queries and text meet here.
    """

    def __init__(self, size: BridgeSize) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size.hidden_size, eps=LAYER_NORM_EPS)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, D) → (B, S, D)."""
        with torch.autocast(hidden.device.type, enabled=False):
            mixed: Tensor = torch.fft.fft2(hidden.float()).real
            return self.norm(hidden.float() + mixed)


class CrossAttention(nn.Module):
    """h ← LN(W attention(h, image) + h)."""

    def __init__(self, size: BridgeSize, image_width: int) -> None:
        super().__init__()
        self.heads = size.heads
        self.query = nn.Linear(size.hidden_size, size.hidden_size)
        self.key = nn.Linear(image_width, size.hidden_size)
        self.value = nn.Linear(image_width, size.hidden_size)
        self.output = nn.Linear(size.hidden_size, size.hidden_size)
        self.norm = nn.LayerNorm(size.hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, hidden: Tensor, image: Tensor) -> Tensor:
        """(B, Q, D), (B, N, C) → (B, Q, D)."""
        attended = F.scaled_dot_product_attention(
            self._split(self.query(hidden)),
            self._split(self.key(image)),
            self._split(self.value(image)),
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        merged = attended.transpose(1, 2).flatten(2)
        return self.norm(self.dropout(self.output(merged)) + hidden)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """h ← LN(W₂ gelu(W₁ h) + h)."""

    def __init__(self, size: BridgeSize) -> None:
        super().__init__()
        self.up = nn.Linear(size.hidden_size, size.intermediate_size)
        self.down = nn.Linear(size.intermediate_size, size.hidden_size)
        self.norm = nn.LayerNorm(size.hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, D) → (B, S, D)."""
        return self.norm(self.dropout(self.down(F.gelu(self.up(hidden)))) + hidden)


class IFTLayer(nn.Module):
    """Fourier mix over everything, cross-attention for the queries, one feed-forward for each kind of token."""

    def __init__(self, size: BridgeSize, image_width: int, *, reads_image: bool, reads_text: bool) -> None:
        super().__init__()
        self.mix = FourierMix(size)
        self.cross = CrossAttention(size, image_width) if reads_image else None
        self.query_ffn = FeedForward(size)
        self.text_ffn = FeedForward(size) if reads_text else None

    def forward(self, hidden: Tensor, queries: int, image: Tensor | None) -> Tensor:
        """(B, S, D), of which the first `queries` rows are query tokens, and (B, N, C) → (B, S, D)."""
        hidden = self.mix(hidden)
        parts = []
        if queries:
            query_hidden = hidden[:, :queries]
            if self.cross is not None and image is not None:
                query_hidden = self.cross(query_hidden, image)
            parts.append(self.query_ffn(query_hidden))
        if hidden.shape[1] > queries:
            assert self.text_ffn is not None, "this IFT was built without its text side"
            parts.append(self.text_ffn(hidden[:, queries:]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class IFT(nn.Module):
    """One stack of layers that reads queries, text, or both.

    Args:
        size: widths and depth.
        image_width: C, channels of an image token.
        vocab_size: rows of the word embedding; None builds no text side (stage 2 and later).
    """

    def __init__(self, size: BridgeSize, image_width: int, vocab_size: int | None = None) -> None:
        super().__init__()
        reads_text = vocab_size is not None
        if vocab_size is not None:
            self.word_embedding = nn.Embedding(vocab_size, size.hidden_size)
            self.position_embedding = nn.Embedding(size.max_positions, size.hidden_size)
        self.embedding_norm = nn.LayerNorm(size.hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(size.dropout)
        self.layers = nn.ModuleList(
            IFTLayer(
                size,
                image_width,
                reads_image=index % size.cross_attention_every == 0,
                reads_text=reads_text,
            )
            for index in range(size.layers)
        )
        self.apply(init_bert)

    def forward(
        self, queries: Tensor | None = None, image: Tensor | None = None, text_ids: Tensor | None = None
    ) -> Tensor:
        """Read the image with the queries, the text, or both in one sequence (queries first).

        Args:
            queries: (B, Q, D), or None for text alone.
            image: (B, N, C), read by the queries.
            text_ids: (B, T) token ids; padding takes part, so pad to a fixed length.

        Returns:
            (B, Q + T, D).
        """
        inputs = [] if queries is None else [queries]
        if text_ids is not None:
            positions = torch.arange(text_ids.shape[1], device=text_ids.device)
            inputs.append(self.word_embedding(text_ids) + self.position_embedding(positions))
        hidden: Tensor = self.dropout(self.embedding_norm(torch.cat(inputs, dim=1)))
        for layer in self.layers:
            hidden = layer(hidden, 0 if queries is None else queries.shape[1], image)
        return hidden

    def copy_text_ffn_to_queries(self) -> None:
        """Start the queries' feed-forward from the text's, as stage 1 does after BERT's weights are in."""
        for layer in self.layers:
            layer.query_ffn.load_state_dict(layer.text_ffn.state_dict())  # type: ignore[union-attr]


def init_bert(module: nn.Module) -> None:
    """BERT's initialisation: weights from N(0, 0.02), biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
