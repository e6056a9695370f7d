"""Vision encoders: an image becomes a row of tokens.

Shapes: B images, N tokens, C channels. `clip_L` is CLIP ViT-L/14 with QuickGELU, cut to 21 of its 24 blocks and
without the final norm; `eva_clip_g` is EVA ViT-g/14, 39 of 40 blocks; `timm:NAME` is any feature extractor of timm,
a convolutional one included (its feature map is read row by row).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from bita.config.schema import ArchConfig
from bita.errors import ConfigError, first_line
from bita.processors.image import CLIP_MEAN, CLIP_STD
from bita.registry import encoders


class _Known(NamedTuple):
    timm_name: str
    depth: int
    align_corners: bool
    """How its positions are resized for another image size."""


KNOWN = {
    "clip_L": _Known("vit_large_patch14_clip_quickgelu_224", depth=21, align_corners=True),
    "eva_clip_g": _Known("eva_giant_patch14_224", depth=39, align_corners=False),
}
KNOWN_SIZE = 224


class ImageInput(NamedTuple):
    """What an encoder was pretrained to read: side in pixels, and mean and deviation of each channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class VisionEncoder(nn.Module):
    """What turns images into tokens; one of your own extends it and is registered (docs/extending.md).

    Attributes:
        width: channels C of a token.
    """

    width: int
    layouts: ClassVar[bool] = False
    """Whether weights may come in any of the layouts of timm's encoders; else they are the encoder's own state."""

    @classmethod
    def image_input(cls, cfg: ArchConfig) -> ImageInput:
        """Return what the encoder of a configuration reads: CLIP's normalisation, unless overridden."""
        return ImageInput(cfg.image_size or KNOWN_SIZE, CLIP_MEAN, CLIP_STD)

    @classmethod
    def from_config(cls, cfg: ArchConfig) -> Self:
        """Build with fresh weights; weights come later, from a file (`bita.weights.load`)."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, N, C); a class token, where there is one, comes first."""
        raise NotImplementedError

    def grid(self, tokens: int) -> tuple[int, int]:
        """Rows and columns of the places in the image that the last tokens stand for, row by row.

        As many as make a square, unless the encoder knows better; the tokens before them have no place.
        """
        side = math.isqrt(tokens)
        return side, side

    def fit_positions(self, positions: Tensor) -> Tensor:
        """Learned positions of another image size, resized for this one's, where the encoder can."""
        return positions


class TimmEncoder(VisionEncoder):
    """A timm trunk whose last feature map is the output, or the outputs of several of its layers.

    A layer is a block of a transformer, or a stage of a trunk whose feature maps shrink from stage to stage; there the
    maps are averaged to the size of the last one that is taken.

    Args:
        trunk: the network.
        layers: numbers, from 1, of the layers whose outputs are taken; none takes the trunk's own output.
        merge: `concat` puts the layers' channels side by side, `sum` adds them.
        align_corners: how positions are resized for another image size; None is timm's own way.
    """

    layouts = True

    def __init__(
        self,
        trunk: nn.Module,
        *,
        layers: Sequence[int] = (),
        merge: str = "concat",
        align_corners: bool | None = None,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.layers, self.merge, self.align_corners = tuple(layers), merge, align_corners
        self.staged = bool(self.layers) and _is_staged(trunk)
        widths = _widths(trunk, self.layers) if self.layers else [int(trunk.num_features)]  # type: ignore[arg-type]
        self.width = sum(widths) if merge == "concat" else widths[0]

    @classmethod
    def image_input(cls, cfg: ArchConfig) -> ImageInput:
        """Return what the encoder was pretrained to read; `model.image_size` has the last word on the size.

        Raises:
            ConfigError: timm does not know the name.
        """
        if cfg.vit_model in KNOWN:
            return super().image_input(cfg)
        import timm

        name = cfg.vit_model.removeprefix("timm:")
        known = timm.get_pretrained_cfg(name)
        if known is None:
            raise ConfigError(f"model.vit_model: timm has no {name}; timm.list_models() lists what it has")
        size = cfg.image_size or known.input_size[-1]
        return ImageInput(size, tuple(map(float, known.mean)), tuple(map(float, known.std)))

    @classmethod
    def from_config(cls, cfg: ArchConfig) -> Self:
        """Build `cfg.vit_model` with fresh weights.

        Raises:
            ConfigError: timm does not know the name, or not the arguments in `vit_args`; `vit_layers` do not fit.
        """
        known = KNOWN.get(cfg.vit_model)
        trunk = _build_trunk(cfg, known)
        for unused in ("fc_norm", "attn_pool"):  # only heads read them
            if isinstance(getattr(trunk, unused, None), nn.Module):
                setattr(trunk, unused, nn.Identity())
        if known is not None or cfg.vit_layers:
            trunk.norm = nn.Identity()
        if cfg.vit_layers:
            _cut_after(trunk, cfg)
        if (
            sum(isinstance(module, nn.Conv2d) for module in trunk.modules()) > 1
        ):  # more than a patch embedding
            trunk.to(memory_format=torch.channels_last)  # fastest for convolutions, on CPUs and GPUs
        if cfg.use_grad_checkpoint:
            checkpoint_blocks(trunk)
        align_corners = None if known is None else known.align_corners
        return cls(trunk, layers=cfg.vit_layers, merge=cfg.vit_layers_merge, align_corners=align_corners)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, N, C); a class token, where there is one, comes first."""
        if self.layers:
            return self._stages(images.to(self.dtype)) if self.staged else self._blocks(images.to(self.dtype))
        features: Tensor = self.trunk.forward_features(images.to(self.dtype))  # type: ignore[operator]
        if features.ndim == 3:
            return features
        if features.shape[1] != self.width:  # channels last
            return features.flatten(1, 2)
        return features.flatten(2).transpose(1, 2)

    def _stages(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, N, C), the chosen stages' maps merged, N the places of the last one's."""
        maps = self.trunk.forward_intermediates(  # type: ignore[operator]
            images, indices=[number - 1 for number in self.layers], output_fmt="NCHW", intermediates_only=True
        )
        size = maps[-1].shape[2:]
        tokens = [nn.functional.adaptive_avg_pool2d(part, size).flatten(2).transpose(1, 2) for part in maps]
        return self._merged(tokens)

    def _merged(self, tokens: list[Tensor]) -> Tensor:
        return torch.cat(tokens, dim=-1) if self.merge == "concat" else torch.stack(tokens).sum(dim=0)

    def _blocks(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, N, C), the chosen blocks' tokens merged, without a final norm."""
        outputs = self.trunk.forward_intermediates(  # type: ignore[operator]
            images,
            indices=[number - 1 for number in self.layers],
            return_prefix_tokens=True,
            norm=False,
            output_fmt="NLC",
            intermediates_only=True,
        )
        tokens = [  # patches, or where there is a class token (patches, class token)
            output if isinstance(output, Tensor) else torch.cat(output[::-1], dim=1) for output in outputs
        ]
        return self._merged(tokens)

    def grid(self, tokens: int) -> tuple[int, int]:
        """See `VisionEncoder.grid`: the patches of a trunk that keeps one token for each."""
        patches: Any = getattr(getattr(self.trunk, "patch_embed", None), "grid_size", None)
        before: Any = getattr(self.trunk, "num_prefix_tokens", 0)
        if patches is not None and patches[0] * patches[1] + before == tokens:
            return int(patches[0]), int(patches[1])
        return super().grid(tokens)

    def fit_positions(self, positions: Tensor) -> Tensor:
        """Learned positions (1, prefix + g², C) of another image size, resized to this trunk's grid."""
        trunk: Any = self.trunk
        rows, patches = trunk.pos_embed.shape[1], trunk.patch_embed.num_patches
        prefix = rows - patches  # the class token's row, where it has one
        if self.align_corners is not None:
            return resize_positions(positions, rows, align_corners=self.align_corners, prefix=prefix)
        from timm.layers import resample_abs_pos_embed

        resized: Tensor = resample_abs_pos_embed(
            positions, list(trunk.patch_embed.grid_size), num_prefix_tokens=prefix
        )
        return resized


def image_input(cfg: ArchConfig) -> ImageInput:
    """Return what the encoder that a configuration names reads."""
    found: ImageInput = encoders.get(cfg.vit_model).image_input(cfg)
    return found


def _build_trunk(cfg: ArchConfig, known: _Known | None) -> Any:
    """Return the timm model that a configuration names, for images of its size."""
    if "img_size" in cfg.vit_args:
        raise ConfigError("model.vit_args.img_size: the size of images is model.image_size; set that")
    size = image_input(cfg).size
    arguments: dict[str, Any] = {"pretrained": False, "num_classes": 0} | dict(cfg.vit_args)
    if known is not None:
        arguments |= {"img_size": size, "depth": known.depth}
    if cfg.vit_depth is not None:
        arguments["depth"] = cfg.vit_depth
    if cfg.drop_path_rate:
        arguments["drop_path_rate"] = cfg.drop_path_rate
    import timm

    name = cfg.vit_model.removeprefix("timm:") if known is None else known.timm_name
    try:
        trunk = timm.create_model(name, **arguments)
        if known is None and hasattr(trunk, "set_input_size"):
            trunk.set_input_size(img_size=(size, size))
    except Exception as error:  # timm raises whatever its parts raise
        where = f"model.vit_model={cfg.vit_model}, model.vit_args={dict(cfg.vit_args)}"
        raise ConfigError(f"{where}: timm cannot build it: {first_line(error)}") from error
    return trunk


def _is_staged(trunk: Any) -> bool:
    """Return whether a trunk's layers are stages, whose maps are of several sizes, and not blocks of tokens."""
    return "return_prefix_tokens" not in signature(trunk.forward_intermediates).parameters


def _cut_after(trunk: Any, cfg: ArchConfig) -> None:
    """Drop what comes after the last layer that `vit_layers` names."""
    if not hasattr(trunk, "forward_intermediates"):
        raise ConfigError(f"model.vit_layers: {cfg.vit_model} has no layers to choose from; set it to []")
    staged, last = _is_staged(trunk), max(cfg.vit_layers)
    depth, layer = (len(trunk.feature_info), "stage") if staged else (len(trunk.blocks), "block")
    if last > depth:
        hint = "" if staged else " (model.vit_depth)"
        raise ConfigError(f"model.vit_layers: {last} is past the last {layer}, {depth}{hint}")
    if not staged:
        trunk.blocks = trunk.blocks[:last]
        return
    widths = _widths(trunk, cfg.vit_layers)
    if cfg.vit_layers_merge == "sum" and len(set(widths)) > 1:
        raise ConfigError(
            f"model.vit_layers_merge: sum of stages of {', '.join(map(str, widths))} channels; set it to concat"
        )
    trunk.prune_intermediate_layers([last - 1], prune_norm=True, prune_head=True)


def _widths(trunk: Any, layers: Sequence[int]) -> list[int]:
    """Return the channels of these layers' outputs."""
    if not _is_staged(trunk):
        return [int(trunk.num_features)] * len(layers)
    return [int(trunk.feature_info[number - 1]["num_chs"]) for number in layers]


def checkpoint_blocks(trunk: nn.Module) -> None:
    """Trade time for memory: blocks keep no activations and run again in the backward pass (fairscale).

    Raises:
        ConfigError: the trunk has no blocks.
    """
    from fairscale.nn.checkpoint import checkpoint_wrapper

    if not hasattr(trunk, "blocks"):
        raise ConfigError("model.use_grad_checkpoint: this vision encoder has no `blocks`; set it to false")
    for block in trunk.blocks:  # type: ignore[union-attr]
        checkpoint_wrapper(block)  # patches the block in place: parameter names stay


def resize_positions(positions: Tensor, tokens: int, *, align_corners: bool, prefix: int = 1) -> Tensor:
    """Bicubically resize learned positions (1, prefix + g², C) to (1, tokens, C); the prefix's rows stay."""
    if positions.shape[1] == tokens:
        return positions
    old, new = round((positions.shape[1] - prefix) ** 0.5), round((tokens - prefix) ** 0.5)
    grid = positions[:, prefix:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=align_corners)
    resized = grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :prefix], resized], dim=1)


def turned(images: Tensor, views: int) -> Iterator[Tensor]:
    """Square images (B, 3, S, S) as an aerial view might as well be: `views` times as many, one after the other.

    That is as they are, turned by one to three quarters, and those four mirrored; the first `views` of the eight.
    """
    for view in range(views):
        quarters = torch.rot90(images, view % 4, (2, 3)) if view % 4 else images
        yield quarters.flip(3) if view >= 4 else quarters
