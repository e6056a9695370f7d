"""Vision encoders: an image becomes a row of tokens.

Shapes: B images, N tokens, C channels. `clip_L` is CLIP ViT-L/14 with QuickGELU, cut to 21 of its 24 blocks and
without the final norm; `eva_clip_g` is EVA ViT-g/14, 39 of 40 blocks; `timm:NAME` is any feature extractor of timm,
a convolutional one included (its feature map is read row by row).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from bita.errors import ConfigError
from bita.schema import ModelConfig


class _Known(NamedTuple):
    timm_name: str
    depth: int


KNOWN = {
    "clip_L": _Known("vit_large_patch14_clip_quickgelu_224", depth=21),
    "eva_clip_g": _Known("eva_giant_patch14_224", depth=39),
}


class VisionEncoder(nn.Module):
    """A timm trunk whose last feature map is the output.

    Attributes:
        width: channels C of a token.
    """

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.width = int(trunk.num_features)  # type: ignore[arg-type]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.trunk.parameters()).dtype

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, N, C); a class token, where there is one, comes first."""
        features: Tensor = self.trunk.forward_features(images.to(self.dtype))  # type: ignore[operator]
        if features.ndim == 3:
            return features
        if features.shape[1] != self.width:  # channels last
            return features.flatten(1, 2)
        return features.flatten(2).transpose(1, 2)


def build_vision_encoder(cfg: ModelConfig) -> VisionEncoder:
    """Build `cfg.vit_model` with fresh weights; weights come later, from a file (`bita.models.weights`).

    Raises:
        ConfigError: timm does not know the name, or not the arguments in `vit_args`.
    """
    arguments: dict[str, Any] = {"pretrained": False, "num_classes": 0} | dict(cfg.vit_args)
    if cfg.vit_model in KNOWN:
        name, depth = KNOWN[cfg.vit_model]
        arguments |= {"img_size": cfg.image_size, "depth": depth if cfg.vit_depth is None else cfg.vit_depth}
    else:
        name = cfg.vit_model.removeprefix("timm:")
        if cfg.vit_depth is not None:
            arguments["depth"] = cfg.vit_depth
    if cfg.drop_path_rate:
        arguments["drop_path_rate"] = cfg.drop_path_rate
    try:
        trunk = timm.create_model(name, **arguments)
    except Exception as error:  # timm raises whatever its parts raise
        where = f"model.vit_model={cfg.vit_model}, model.vit_args={dict(cfg.vit_args)}"
        raise ConfigError(
            f"{where}: timm cannot build it: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
    if cfg.vit_model in KNOWN:
        trunk.norm = nn.Identity()
        trunk.fc_norm = nn.Identity()
    elif not hasattr(trunk, "blocks"):  # a convolutional trunk is fastest so, on CPUs and GPUs
        trunk.to(memory_format=torch.channels_last)
    if cfg.use_grad_checkpoint:
        checkpoint_blocks(trunk)
    return VisionEncoder(trunk)


def checkpoint_blocks(trunk: nn.Module) -> None:
    """Trade time for memory: blocks keep no activations and run again in the backward pass (fairscale)."""
    from fairscale.nn.checkpoint import checkpoint_wrapper

    if not hasattr(trunk, "blocks"):
        raise ConfigError("model.use_grad_checkpoint: this vision encoder has no `blocks`; set it to false")
    for block in trunk.blocks:  # type: ignore[union-attr]
        checkpoint_wrapper(block)  # patches the block in place: parameter names stay


def resize_positions(positions: Tensor, tokens: int, *, align_corners: bool) -> Tensor:
    """Bicubically resize learned positions (1, 1+g², C) to (1, tokens, C); the class token's row stays."""
    if positions.shape[1] == tokens:
        return positions
    old, new = round((positions.shape[1] - 1) ** 0.5), round((tokens - 1) ** 0.5)
    grid = positions[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=align_corners)
    resized = grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :1], resized], dim=1)
