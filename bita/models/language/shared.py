"""A decoder whose captions of an image share the image's keys and values: nothing that was read is ever copied.

The captions of an image (its beams) are read as one sequence:

    [prefix | first token of each caption | second token of each caption | … ]

A caption sees the prefix and its own tokens, whichever places they stand at: when a beam goes on from another, it is
the mask that changes, not the cache. All tokens of a step have the same position.

Shapes: B images, S prefix positions, R captions an image, H width of the language model, V its vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer, written into room that was made beforehand.

    Args:
        room: positions after those that are written first.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.whole: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write (B, heads, N, width) behind what is there; all of it, as views."""
        if not self.whole:
            self.whole = [
                new.new_empty((*new.shape[:2], new.shape[2] + self.room, new.shape[3]))
                for new in (keys, values)
            ]
            self.keys, self.values = (whole[:, :, :0] for whole in self.whole)
            self.is_initialized = True
        start = self.keys.shape[2]
        end = start + keys.shape[2]
        for whole, new in zip(self.whole, (keys, values), strict=True):
            whole[:, :, start:end] = new
        self.keys, self.values = (whole[:, :, :end] for whole in self.whole)
        return self.keys, self.values

    def select(self, images: Tensor) -> None:
        """Keep some images' rows."""
        used = self.keys.shape[2]
        self.whole = [whole[images] for whole in self.whole]
        self.keys, self.values = (whole[:, :, :used] for whole in self.whole)


class SharedDecoder:
    """A causal language model that reads the captions of an image in one sequence (a `generation.Decoder`).

    Args:
        model: one that reads packed captions (`packing.can_be_packed`).
        inputs: (B, S, H) prefixes.
        steps: most tokens that will be read after them.
        width: R.
    """

    def __init__(self, model: PreTrainedModel, inputs: Tensor, steps: int, width: int) -> None:
        self.model, self.inputs, self.width = model, inputs, width
        self.layers: list[RoomyLayer] = []
        self.cache = Cache(layer_class_to_replicate=self._layer)
        images, self.length = inputs.shape[:2]
        self.room, self.read = steps * width, 0
        self.hidden = torch.finfo(inputs.dtype).min
        self.mask = inputs.new_full((images, width, self.length + self.room), self.hidden)
        self.mask[:, :, : self.length] = 0.0

    def _layer(self) -> RoomyLayer:
        self.layers.append(RoomyLayer(self.room))
        return self.layers[-1]

    def start(self) -> Tensor:
        """See `generation.Decoder`."""
        output = self.model(
            inputs_embeds=self.inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """See `generation.Decoder`."""
        own = torch.arange(self.width, device=tokens.device)
        start = self.length + self.read * self.width
        self.mask = self.mask.gather(1, parents[:, :, None].expand_as(self.mask))
        self.mask[:, own, start + own] = 0.0
        output = self.model(
            input_ids=tokens,
            position_ids=torch.full_like(tokens, self.length + self.read),
            attention_mask=self.mask[:, None, :, : start + self.width],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.read += 1
        logits: Tensor = output.logits
        return logits

    def keep(self, images: Tensor) -> None:
        """See `generation.Decoder`."""
        self.mask = self.mask[images]
        for layer in self.layers:
            layer.select(images)


def fits(model: PreTrainedModel, length: int, places: int) -> bool:
    """Return whether captions of an image in one sequence see all that comes before them.

    Args:
        model: the language model.
        length: positions of the prefix and one caption, of which no sliding window may see less.
        places: of the whole sequence, of which a window that goes by place (GPT-Neo's) may see no less.
    """
    local = "local" in getattr(model.config, "attention_layers", ())
    layers = DynamicCache(config=model.config).layers
    return not (local and model.config.window_size < places) and all(
        not layer.is_sliding or layer.sliding_window >= length for layer in layers
    )
