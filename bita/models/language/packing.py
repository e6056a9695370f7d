"""The captions of an image in one sequence: the language model reads the prefix once, and then each caption after it.

    [prefix | caption 1 | caption 2 | … ]

A caption sees the prefix and itself, and its positions go on from the prefix's end, as if it stood there alone: the
loss and its gradient are those of separate rows. Nothing is padded between the captions.

Shapes: I images, B captions (B/I an image, side by side), Q query tokens, T text tokens, L packed text tokens at most,
N labelled places.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bita.models.language.decoder import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCES = {8: 1e-6, 4: 1e-4, 2: 0.05}
"""Bytes a number → share of the largest hidden value within which packed and separate captions must agree."""


@dataclass(frozen=True)
class Packed:
    """Packed captions, on the CPU.

    Attributes:
        ids: (I, L) token ids, padded on the right.
        positions: (I, Q + L) what each place counts as, the prefix's first being 0.
        visible: (I, 1, Q + L, Q + L) True where a place (row) sees another (column).
        rows: (N,) image of each labelled place.
        places: (N,) where in its sequence the label is predicted; labels in the order of `labels.nonzero()`.
    """

    ids: Tensor
    positions: Tensor
    visible: Tensor
    rows: Tensor
    places: Tensor

    def reading(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return what a model of transformers must be told beside its inputs; the mask holds 0 or the lowest number."""
        mask = torch.zeros(self.visible.shape, dtype=dtype, device=device)
        mask.masked_fill_(~self.visible.to(device, non_blocking=True), torch.finfo(dtype).min)
        return {"attention_mask": mask, "position_ids": self.positions.to(device, non_blocking=True)}


def pack(ids: Tensor, labels: Tensor, images: int, queries: int) -> Packed:
    """Put the captions of each image one after the other.

    Args:
        ids: (B, T) tokens of the captions, an image's side by side, padded on the right.
        labels: (B, T) `IGNORED` where nothing is learned; the last token of a caption always has one.
        images: I.
        queries: Q.
    """
    count, width = ids.shape
    captions = count // images
    labelled = labels != IGNORED
    lengths = (labelled * torch.arange(1, width + 1)).amax(dim=1)
    real = torch.arange(width) < lengths[:, None]  # (B, T)
    ends = lengths.view(images, captions).cumsum(dim=1)
    starts = (ends - lengths.view(images, captions)).flatten()
    longest = int(ends[:, -1].max())
    owner = torch.arange(count) // captions
    caption, column = real.nonzero(as_tuple=True)
    place = starts[caption] + column

    packed = torch.zeros(images, longest, dtype=ids.dtype)
    packed[owner[caption], place] = ids[caption, column]
    positions = torch.zeros(images, longest, dtype=torch.long)
    positions[owner[caption], place] = column
    number = torch.full((images, longest), -1)  # which caption a place is of; padding: none
    number[owner[caption], place] = caption

    total = queries + longest
    of = torch.cat([torch.full((images, queries), count), number], dim=1)
    same = (of[:, :, None] == of[:, None, :]) | (torch.arange(total) < queries)
    visible = same & torch.ones(total, total, dtype=torch.bool).tril()
    ahead = torch.arange(queries).expand(images, -1)

    caption, column = labelled.nonzero(as_tuple=True)
    before = torch.where(column > 0, queries + starts[caption] + column - 1, queries - 1)
    return Packed(
        ids=packed,
        positions=torch.cat([ahead, queries + positions], dim=1),
        visible=visible[:, None],
        rows=owner[caption],
        places=before,
    )


@torch.no_grad()
def can_be_packed(model: PreTrainedModel) -> bool:
    """Return whether a language model reads packed captions as it reads separate ones; found out on two short ones.

    Not so where it takes no positions (ALiBi), or keeps a state instead of attending (Mamba, RWKV).
    """
    trunk = model.base_model
    if "position_ids" not in inspect.signature(trunk.forward).parameters:
        return False
    table: nn.Embedding = model.get_input_embeddings()
    device, dtype = table.weight.device, table.weight.dtype
    prefix = torch.randn(1, 2, table.embedding_dim, generator=torch.Generator().manual_seed(0))
    prefix = prefix.to(device, dtype)
    ids = torch.tensor([[0, 1, 0], [1, 0, 1]])
    packed = pack(ids, ids, images=1, queries=2)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        row = torch.cat([prefix, table(packed.ids.to(device))], dim=1)
        together = trunk(inputs_embeds=row, use_cache=False, **packed.reading(device, dtype))
        rows = torch.cat([prefix.expand(2, -1, -1), table(ids.to(device))], dim=1)
        apart = trunk(inputs_embeds=rows, use_cache=False).last_hidden_state[:, 2:].flatten(0, 1).float()
    except (
        TypeError,
        ValueError,
        RuntimeError,
        IndexError,
    ):  # what the families raise at a mask of this shape
        return False
    finally:
        for module, mode in modes.items():
            module.training = mode
    far = (together.last_hidden_state[0, 2:].float() - apart).abs().max()
    return bool(far <= TOLERANCES[dtype.itemsize] * apart.abs().max())
