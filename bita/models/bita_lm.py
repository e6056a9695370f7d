"""Stages 2 and 3: the query tokens' output is the prefix that a causal language model reads before it writes.

Shapes: B images, Q query tokens, T text tokens, H width of the language model, V its vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bita.batch import Batch
from bita.config.parts import CaptionerConfig, ModelConfig
from bita.errors import UserError
from bita.models.base import BitaModel, for_captions
from bita.models.language.adapters import lora_modules, merge_lora
from bita.models.language.decoder import IGNORED, CaptionTokens, cast_weights
from bita.models.language.generation import GenerationSettings, generate
from bita.models.language.language_model import LanguageModel
from bita.models.language.packing import pack
from bita.models.language.tokenizers import TOKENIZER_FOLDER
from bita.precision import PRECISIONS, sixteen_bit
from bita.registry import decoders


class BitaLM(BitaModel):
    """The captioning model, arch `bita_opt`.

    Args:
        cfg: sizes and options.
        decoder: what writes, with its tokenizer.
    """

    Config = CaptionerConfig
    cfg: ModelConfig

    def __init__(self, cfg: ModelConfig, decoder: LanguageModel) -> None:
        super().__init__(cfg, vocab_size=None)
        self.decoder = decoder
        self.tokenizer = decoder.tokenizer
        self.opt_model: Any = decoder.network
        self.opt_proj = nn.Linear(cfg.bridge_size.hidden_size, decoder.width)
        if decoder.source is not None:
            self.sources["opt_model"] = decoder.source
            if cfg.freeze_lm:
                self.external["opt_model"] = decoder.source
        if cfg.freeze_lm:
            self.opt_model.requires_grad_(False)
        if cfg.lora is not None:
            decoder.add_lora(cfg.lora)

    @classmethod
    def from_config(cls, cfg: ModelConfig, load_weights: bool = True) -> Self:
        """Build around the decoder that the configuration names; see `TransformersDecoder.from_config`."""
        return cls(cfg, decoders.get(cfg.decoder).from_config(cfg, load_weights))

    @cached_property
    def tokens(self) -> CaptionTokens:
        """How captions are written in the language model's tokens."""
        assert self.tokenizer is not None, "this model was built without a tokenizer"
        return CaptionTokens.of(self.tokenizer, self.decoder.family, self.decoder.vocabulary)

    def frozen_parts(self) -> list[nn.Module]:
        """The vision encoder and, without `frozen_lm_dropout`, the language model, as configured."""
        silent = self.cfg.freeze_lm and not self.cfg.frozen_lm_dropout
        return super().frozen_parts() + ([self.opt_model] if silent else [])

    def train(self, mode: bool = True) -> Self:
        """Training mode for what is trained, LoRA's dropout included; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in lora_modules(self.opt_model):
            module.lora_dropout.train(mode)  # type: ignore[union-attr]
        return self

    def place(self, device: torch.device) -> Self:
        """Bring the language model to its precision, 8 or 4 bit included, then all to a device."""
        precision: str = self.cfg.lm_precision
        if precision == "auto":
            precision = sixteen_bit(device) if self.cfg.freeze_lm else "fp32"
        cast_weights(self.opt_model, PRECISIONS[precision])
        if self.cfg.lm_quantize != "none":
            self.merge_lora()
            self.decoder.quantize(self.cfg.lm_quantize, device)
        return super().place(device)

    def merge_lora(self) -> None:
        """Add LoRA's weights to those that they stand beside and take them out: the same model, as fast as without."""
        merge_lora(self.opt_model)
        if self.cfg.lora is not None:
            self.external.pop("opt_model", None)  # it is no longer what its owner published

    def loss_weight(self, batch: Batch) -> int:
        """What a batch's loss counts in the mean over a split: its captions' tokens."""
        return int((self.tokenize(batch["text"])[1] != IGNORED).sum())

    def language_model(self) -> nn.Module | None:
        """See `BitaModel.language_model`."""
        return self.opt_model

    def check_frozen_parts(self) -> None:
        """See `BitaModel.check_frozen_parts`."""
        super().check_frozen_parts()
        if self.cfg.opt_model is None and self.cfg.freeze_lm:
            raise UserError(
                "model.opt_model: the frozen language model would stay random; name its folder, or a checkpoint that "
                "holds it in model.init_from, or set model.freeze_lm=false to train it"
            )

    def keep_tokenizer(self, folder: Path) -> None:
        """See `BitaModel.keep_tokenizer`."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)

    def save_parts(self, folder: Path, max_shard: str) -> set[str]:
        """See `BitaModel.save_parts`: the language model and its tokenizer."""
        self.keep_tokenizer(folder)
        return {"opt_model"} if self.decoder.save(folder, max_shard) else set()

    def tied_names(self) -> set[str]:
        """What the decoder ties, such as an output head to the input embedding."""
        return {f"opt_model.{name}" for name in self.decoder.tied_names()}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean cross-entropy of the captions' tokens, each with what ends it (`CaptionTokens`).

        An image's captions stand in one sequence where the language model can read them so (`packing`).
        """
        ids, labels = self.tokenize(batch["text"])
        prefix = self.prefix_of(self.batch_tokens(batch))
        if len(ids) > len(prefix) and self.packs:
            return {"loss": self.packed_loss(prefix, ids, labels)}
        return {"loss": self.caption_loss(for_captions(prefix, len(ids)), ids, labels)}

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """B texts (the prompt on them already) → ids and labels (B, T), on the CPU, padded on the right.

        Labels are `IGNORED` on padding and on the tokens of the prompt, when there is one (`CaptionTokens.batch`).
        """
        return self.tokens.batch(texts, self.cfg.prompt, self.cfg.max_txt_len)

    def prefix(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, Q, H): what the language model reads in place of words."""
        return self.prefix_of(self.raw_tokens(images))

    def prefix_of(self, raw_tokens: Tensor) -> Tensor:
        """(B, N, C), before `ln_vision` → (B, Q, H)."""
        prefix: Tensor = self.opt_proj(self.query_image(self.ln_vision(raw_tokens.float())))
        return prefix

    def caption_loss(self, prefix: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of `labels` (B, T; on the CPU) after `prefix` (B, Q, H), averaged over all that count.

        Padding needs no mask: it is on the right, where a causal model cannot see it, and carries no label.
        Logits are computed only where a label is: the positions are found on the CPU, so nothing waits.
        """
        queries, device = prefix.shape[1], prefix.device
        rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
        targets = labels[rows, columns].to(device, non_blocking=True)
        rows, columns = rows.to(device, non_blocking=True), columns.to(device, non_blocking=True)
        words = self.decoder.embed(ids.to(device, non_blocking=True))
        inputs = torch.cat([prefix.to(words.dtype), words], dim=1)
        logits = self.decoder.logits_at(inputs, rows, queries + columns - 1)
        return F.cross_entropy(logits.float(), targets)

    @cached_property
    def packs(self) -> bool:
        """Whether the language model reads the captions of an image in one sequence."""
        return self.decoder.packs()

    def packed_loss(self, prefix: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        """What `caption_loss` gives when each of I prefixes (I, Q, H) is repeated for its captions; reads it once."""
        device = prefix.device
        packed = pack(ids, labels, *prefix.shape[:2])
        words = self.decoder.embed(packed.ids.to(device, non_blocking=True))
        inputs = torch.cat([prefix.to(words.dtype), words], dim=1)
        rows, places, targets = (
            x.to(device, non_blocking=True) for x in (packed.rows, packed.places, packed.targets)
        )
        logits = self.decoder.logits_at(inputs, rows, places, **packed.reading(device, inputs.dtype))
        return F.cross_entropy(logits.float(), targets)

    @torch.inference_mode()
    def generate_ids(
        self,
        images: Tensor,
        settings: GenerationSettings,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[list[list[int]]]:
        """Token ids of `num_captions` captions an image; (B, 3, H, W) images, encoded once for all beams.

        `generators` are for sampling, one an image (`generation.generate`).
        """
        prompt = torch.tensor(self.tokens.prompt(self.cfg.prompt), device=self.device)
        words = self.decoder.embed(prompt).expand(len(images), -1, -1)
        inputs = torch.cat([self.prefix(images).to(words.dtype), words], dim=1)
        decoder = self.decoder.search(inputs, settings)
        return generate(decoder, len(images), self.tokens.stop, settings, generators)

    def generate(
        self,
        images: Tensor,
        settings: GenerationSettings,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[list[str]]:
        """`num_captions` captions for each of (B, 3, H, W) images, best first; see `generate_ids`."""
        ids = self.generate_ids(images, settings, generators)
        return [self.decode(captions) for captions in ids]

    def decode(self, ids: list[list[int]]) -> list[str]:
        """Token ids → text, stripped at both ends."""
        return self.tokens.decode(ids)
