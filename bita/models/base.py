"""What both models share: vision encoder, query tokens, bridge; what is frozen; what a checkpoint holds."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from bita.batch import Batch
from bita.config.schema import ModelConfig
from bita.errors import UserError
from bita.models.bridge import Bridge
from bita.models.ift import IFT
from bita.models.qformer import QFormer
from bita.models.vision import VisionEncoder, build_vision_encoder
from bita.precision import PRECISIONS, sixteen_bit

BRIDGES: dict[str, type[Bridge]] = {"ift": IFT, "qformer": QFormer}
"""`model.bridge` → class; the name is also the part's name in checkpoints."""


class BitaModel(nn.Module):
    """An image encoder and query tokens that read it through a bridge, the IFT or the Q-Former.

    Shapes: B images, N image tokens, C image width, Q query tokens, D hidden width.

    Attributes:
        external: part name → where its frozen weights were read from. A checkpoint leaves these parts out.
        sources: part name → where its weights were read from before any checkpoint, frozen or not.
    """

    def __init__(self, cfg: ModelConfig, *, vocab_size: int | None) -> None:
        super().__init__()
        self.cfg = cfg
        self.external: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        self.visual_encoder: VisionEncoder = build_vision_encoder(cfg)
        self.ln_vision = nn.LayerNorm(self.visual_encoder.width, eps=1e-5)
        self.query_tokens = nn.Parameter(torch.empty(1, cfg.num_query_token, cfg.bridge_size.hidden_size))
        nn.init.normal_(self.query_tokens, std=0.02)
        bridge = BRIDGES[cfg.bridge](cfg.bridge_size, self.visual_encoder.width, vocab_size)
        self.add_module(cfg.bridge, bridge)
        if cfg.freeze_vit:
            self.visual_encoder.requires_grad_(False)

    @property
    def bridge(self) -> Bridge:
        """The part that `model.bridge` names."""
        bridge = self.get_submodule(self.cfg.bridge)
        assert isinstance(bridge, Bridge)
        return bridge

    def frozen_parts(self) -> list[nn.Module]:
        """Modules that stay in evaluation mode whatever `train()` says."""
        return [self.visual_encoder] if self.cfg.freeze_vit else []

    def train(self, mode: bool = True) -> Self:
        """Training mode for what is trained; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self.frozen_parts():
            part.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.query_tokens.device

    def place(self, device: torch.device) -> Self:
        """Move to a device; frozen parts take their configured 16-bit precision there (on a CPU: bf16 when asked)."""
        self.to(device)
        precision = self.cfg.vit_precision
        if self.cfg.freeze_vit and (device.type != "cpu" or precision == "bf16"):
            self.visual_encoder.to(PRECISIONS[sixteen_bit(device) if precision == "auto" else precision])
        return self

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, N, C) float32, after `ln_vision`."""
        return self.ln_vision(self.raw_tokens(images).float())

    def raw_tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, N, C), before `ln_vision`, in the encoder's precision; no gradient where it is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.cfg.freeze_vit):
            tokens: Tensor = self.visual_encoder(images)
        return tokens

    def batch_tokens(self, batch: Batch) -> Tensor:
        """`raw_tokens` of a batch's images, (I, N, C), or what was kept of them."""
        return batch["tokens"] if "tokens" in batch else self.raw_tokens(batch["image"])

    def query_image(self, image_tokens: Tensor) -> Tensor:
        """What the query tokens read in (B, N, C): (B, Q, D)."""
        output: Tensor = self.bridge(self._queries(len(image_tokens)), image_tokens)
        return output

    def _queries(self, count: int) -> Tensor:
        """The query tokens, once for each of `count` images: (count, Q, D)."""
        return self.query_tokens.expand(count, -1, -1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """A batch's `loss` (with gradient) and other scalars (without)."""
        raise NotImplementedError

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Every tensor that no external file holds, by our names; tied copies once."""
        tied = self.tied_names()
        return {
            name: tensor.detach()
            for name, tensor in self.state_dict().items()
            if name not in tied and part_of(name) not in self.external
        }

    def load_checkpoint_state(self, state: dict[str, Tensor]) -> None:
        """Take back exactly what `checkpoint_state` gave.

        Raises:
            UserError: names or shapes differ.
        """
        expected = self.checkpoint_state()
        missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
        wrong = [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
        for what, names in (("misses", missing), ("has unknown", unknown), ("has another shape of", wrong)):
            if names:
                example = min(names)
                raise UserError(
                    f"checkpoint {what} {len(names)} tensors, e.g. {example}: it is of another architecture"
                )
        self.load_state_dict(state, strict=False)

    def tied_names(self) -> set[str]:
        """State names that are second names of one tensor."""
        return set()


def for_captions(rows: Tensor, captions: int) -> Tensor:
    """(I, …), a row an image → (captions, …), each image's row as often as it has captions (`Batch`)."""
    return rows if len(rows) == captions else rows.repeat_interleave(captions // len(rows), dim=0)


def part_of(name: str) -> str:
    """The part a tensor belongs to: the first piece of its name; but LoRA's weights are a part of their own."""
    return "lora" if ".lora_" in name else name.split(".", 1)[0]
