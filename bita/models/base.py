"""What both models share: vision encoder, query tokens, bridge; what is frozen; what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from bita.batch import Batch
from bita.config.schema import ArchConfig
from bita.errors import UserError
from bita.models.bridge import Bridge
from bita.models.language.generation import Candidate, GenerationSettings
from bita.models.vision import VisionEncoder, turned
from bita.precision import PRECISIONS, sixteen_bit
from bita.registry import bridges, encoders


class BitaModel(nn.Module):
    """An image encoder and query tokens that read it through a bridge, the IFT or the Q-Former.

    Shapes: B images, N image tokens, C image width, Q query tokens, D hidden width.

    Attributes:
        external: part name → where its frozen weights were read from. A checkpoint leaves these parts out.
        sources: part name → where its weights were read from before any checkpoint, frozen or not.
    """

    def __init__(self, cfg: ArchConfig, *, vocab_size: int | None) -> None:
        super().__init__()
        self.cfg = cfg
        self.external: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        self.visual_encoder: VisionEncoder = encoders.get(cfg.vit_model).from_config(cfg)
        self.ln_vision = nn.LayerNorm(self.visual_encoder.width, eps=1e-5)
        self.query_tokens = nn.Parameter(torch.empty(1, cfg.num_query_token, cfg.bridge_size.hidden_size))
        nn.init.normal_(self.query_tokens, std=0.02)
        bridge = bridges.get(cfg.bridge)(cfg.bridge_size, self.visual_encoder.width, vocab_size)
        self.add_module(cfg.bridge, bridge)
        if cfg.freeze_vit:
            self.visual_encoder.requires_grad_(False)

    @property
    def bridge(self) -> Bridge:
        """The part that `model.bridge` names; the name is also the part's name in checkpoints."""
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

    def view_tokens(self, images: Tensor, views: int) -> Tensor:
        """`raw_tokens` of each of an image's first `views` views (`turned`), side by side: (B · views, N, C)."""
        every = [self.raw_tokens(view) for view in turned(images, views)]  # one after the other: memory stays
        return every[0] if views == 1 else torch.stack(every, dim=1).flatten(0, 1)

    def batch_tokens(self, batch: Batch) -> Tensor:
        """`raw_tokens` of a batch's images, (I, N, C), or what was kept of them."""
        return batch["tokens"] if "tokens" in batch else self.raw_tokens(batch["image"])

    def query_image(self, image_tokens: Tensor) -> Tensor:
        """Return what the query tokens read in (B, N, C): (B, Q, D)."""
        output: Tensor = self.bridge(self._queries(len(image_tokens)), image_tokens)
        return output

    def _queries(self, count: int) -> Tensor:
        """Return the query tokens, once for each of `count` images: (count, Q, D)."""
        return self.query_tokens.expand(count, -1, -1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return a batch's `loss` (with gradient) and other scalars (without)."""
        raise NotImplementedError

    def candidates(
        self,
        raw_tokens: Tensor,
        settings: GenerationSettings,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[list[Candidate]]:
        """`num_captions` captions for each of B images, best first; of models that write captions.

        Args:
            raw_tokens: (B · `settings.views`, N, C), what `view_tokens` gives.
            settings: how captions are searched for.
            generators: for sampling, one an image (`generation.search`).
        """
        raise NotImplementedError

    def generate(
        self,
        images: Tensor,
        settings: GenerationSettings,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[list[str]]:
        """`candidates` of (B, 3, H, W) images, as texts alone."""
        with torch.inference_mode():
            found = self.candidates(self.view_tokens(images, settings.views), settings, generators)
        return [[candidate.text for candidate in captions] for captions in found]

    @property
    def aligns(self) -> bool:
        """Whether it learns to compare images and texts, and so has what `BitaITC` compares them by."""
        return False

    def loss_weight(self, batch: Batch) -> int:
        """Return what a batch's loss counts in the mean over a split: its images."""
        return len(batch["image_id"])

    def language_model(self) -> nn.Module | None:
        """Return the part that several processes can hold in shares."""
        return None

    def merge_lora(self) -> None:
        """Merge what stands beside frozen weights into them, where there is something."""

    def check_frozen_parts(self) -> None:
        """Raise UserError where a frozen part has no weights but random ones."""
        if self.cfg.freeze_vit and self.cfg.vit_weights is None:
            raise UserError(
                f"model.vit_weights: the frozen vision encoder {self.cfg.vit_model} would stay random; name its "
                "weights' file, or a checkpoint that holds them in model.init_from, or set model.freeze_vit=false to "
                "train it"
            )

    def keep_tokenizer(self, folder: Path) -> None:
        """Put a copy of the tokenizer that a run cannot do without into its folder, so that the run can be moved."""

    def save_parts(self, folder: Path, max_shard: str) -> set[str]:
        """Write what other libraries read, such as tokenizers, below the folder of an export.

        Args:
            folder: of the export.
            max_shard: largest file of weights, such as `5GB`.

        Returns:
            The parts whose weights are all in what was written.
        """
        return set()

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Return every tensor that no external file holds, by our names; tied copies once."""
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
    """Return the part a tensor belongs to: the first piece of its name; but LoRA's weights are a part of their own."""
    return "lora" if ".lora_" in name else name.split(".", 1)[0]
