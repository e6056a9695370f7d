"""What the IFT and the Q-Former share: BERT's embedding, attention and feed-forward, and how a layer treats its tokens.

Shapes: B batch, Q query tokens, T text tokens, S = Q + T, D hidden width, N image tokens, C image width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bita.config.parts import BridgeSize
from bita.config.schema import BridgeConfig

LAYER_NORM_EPS = 1e-12
PAD_ID = 0
"""Id of BERT's [PAD]."""


class Attention(nn.Module):
    """h ← LN(W attention(h, source) + h): self-attention where `source` is h itself, else cross-attention.

    Args:
        size: widths and number of heads.
        source_width: channels of what is read.
    """

    def __init__(self, size: BridgeSize, source_width: int) -> None:
        super().__init__()
        self.heads = size.heads
        self.query = nn.Linear(size.hidden_size, size.hidden_size)
        self.key = nn.Linear(source_width, size.hidden_size)
        self.value = nn.Linear(source_width, size.hidden_size)
        self.output = nn.Linear(size.hidden_size, size.hidden_size)
        self.norm = nn.LayerNorm(size.hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, hidden: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, S, D), (B, N, C) → (B, S, D); `mask`, to be spread over (B, heads, S, N), is True where it may look."""
        attended = F.scaled_dot_product_attention(
            self._split(self.query(hidden)),
            self._split(self.key(source)),
            self.values(source),
            attn_mask=mask,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        merged = attended.transpose(1, 2).flatten(2)
        return self.norm(self.dropout(self.output(merged)) + hidden)

    def weights(self, hidden: Tensor, source: Tensor) -> Tensor:
        """What `forward` weighs values by, without a mask: (B, S, D), (B, N, C) → (B, heads, S, N), rows sum to 1."""
        query, key = self._split(self.query(hidden)).float(), self._split(self.key(source)).float()
        return (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)

    def values(self, source: Tensor) -> Tensor:
        """What `forward` weighs: (B, N, C) → (B, heads, N, D / heads)."""
        return self._split(self.value(source))

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


class BridgeLayer(nn.Module):
    """A layer's second half: cross-attention for the queries, one feed-forward for each kind of token.

    How tokens meet in its first half is what a subclass adds.
    """

    def __init__(self, size: BridgeSize, image_width: int, *, reads_image: bool, reads_text: bool) -> None:
        super().__init__()
        self.cross = Attention(size, image_width) if reads_image else None
        self.query_ffn = FeedForward(size)
        self.text_ffn = FeedForward(size) if reads_text else None

    def after_mixing(self, hidden: Tensor, queries: int, image: Tensor | None) -> Tensor:
        """(B, S, D), of which the first `queries` rows are query tokens, and (B, N, C) → (B, S, D)."""
        parts = []
        if queries:
            query_hidden = hidden[:, :queries]
            if self.cross is not None and image is not None:
                query_hidden = self.cross(query_hidden, image)
            parts.append(self.query_ffn(query_hidden))
        if hidden.shape[1] > queries:
            assert self.text_ffn is not None, "this bridge was built without its text side"
            parts.append(self.text_ffn(hidden[:, queries:]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class Bridge(nn.Module):
    """What reads queries, text, or both; one of your own extends it and is registered (docs/extending.md).

    Args:
        size: its `Config`.
        image_width: C, channels of an image token.
        vocab_size: rows of the word embedding; None builds no text side (stage 2 and later).
    """

    word_embedding: nn.Embedding
    """Of bridges with a text side."""
    maps_from: ClassVar[dict[str, str]] = {}
    """Another bridge → the `model.init_map` by which what its weights and this one's have in common is taken."""
    fresh_beside_bert: ClassVar[str] = "cross-attention"
    """What stays fresh where BERT's weights start it, for reports of loads."""

    def __init__(self, size: BridgeConfig, image_width: int, vocab_size: int | None = None) -> None:
        super().__init__()

    def forward(
        self, queries: Tensor | None = None, image: Tensor | None = None, text_ids: Tensor | None = None
    ) -> Tensor:
        """Read the image with the queries, the text, or both in one sequence (queries first).

        Args:
            queries: (B, Q, D), or None for text alone.
            image: (B, N, C), read by the queries.
            text_ids: (B, T) token ids, padded on the right.

        Returns:
            (B, Q + T, D).
        """
        raise NotImplementedError

    def read(self, queries: Tensor, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The queries' output (B, Q, D), and what each layer was given, for `write`; where the Config `writes`."""
        raise NotImplementedError

    def write(self, text_ids: Tensor, seen: list[Tensor]) -> Tensor:
        """Text (B, T) after the queries that gave `seen`, each token after those before it: (B, T, D)."""
        raise NotImplementedError

    def copy_text_ffn_to_queries(self) -> None:
        """Start the queries' own layers from the text's, after BERT's weights are in, where there are both."""


class BertBridge(Bridge):
    """One stack of layers in BERT's layout, with cross-attention to the image for the queries."""

    layer: type[BridgeLayer]
    """What the stack is made of."""
    cross_attention_every: int
    """The published distance between layers with cross-attention, where the sizes name none."""

    def __init__(self, size: BridgeSize, image_width: int, vocab_size: int | None = None) -> None:
        super().__init__(size, image_width, vocab_size)
        reads_text = vocab_size is not None
        every = size.cross_attention_every or self.cross_attention_every
        if vocab_size is not None:
            self.word_embedding = nn.Embedding(vocab_size, size.hidden_size)
            self.position_embedding = nn.Embedding(size.max_positions, size.hidden_size)
        self.embedding_norm = nn.LayerNorm(size.hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(size.dropout)
        self.layers = nn.ModuleList(
            self.layer(size, image_width, reads_image=index % every == 0, reads_text=reads_text)
            for index in range(size.layers)
        )
        self.apply(init_bert)

    def embed(self, queries: Tensor | None = None, text_ids: Tensor | None = None) -> Tensor:
        """Return what the first layer reads (B, Q + T, D): queries, without positions, in front of the text."""
        inputs = [] if queries is None else [queries]
        if text_ids is not None:
            positions = torch.arange(text_ids.shape[1], device=text_ids.device)
            inputs.append(self.word_embedding(text_ids) + self.position_embedding(positions))
        embedded: Tensor = self.dropout(self.embedding_norm(torch.cat(inputs, dim=1)))
        return embedded

    def copy_text_ffn_to_queries(self) -> None:
        """See `Bridge.copy_text_ffn_to_queries`."""
        for layer in self.layers:
            layer.query_ffn.load_state_dict(layer.text_ffn.state_dict())  # type: ignore[union-attr]


def init_bert(module: nn.Module) -> None:
    """BERT's initialisation: weights from N(0, 0.02), biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
