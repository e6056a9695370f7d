"""Stages 2 and 3: the query tokens' output is the prefix that a causal language model reads before it writes.

Shapes: B images, Q query tokens, T text tokens, H width of the language model, V its vocabulary.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bita.batch import Batch
from bita.config.schema import ModelConfig
from bita.models.base import BitaModel, for_captions
from bita.models.language.adapters import add_lora, lora_modules, merge_lora
from bita.models.language.decoder import (
    IGNORED,
    CachedDecoder,
    CaptionTokens,
    cast_weights,
    check_sizes,
    fresh_language_model,
    load_language_model,
    logits_at,
)
from bita.models.language.generation import GenerationSettings, generate
from bita.models.language.packing import can_be_packed, pack
from bita.models.language.quantize import quantize
from bita.models.language.tokenizers import load_tokenizer
from bita.precision import PRECISIONS, sixteen_bit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)


class BitaLM(BitaModel):
    """The captioning model, arch `bita_opt`.

    Args:
        cfg: sizes and options.
        language_model: any causal language model of transformers.
        tokenizer: its tokenizer; None when only token ids will be given.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        language_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__(cfg, vocab_size=None)
        self.tokenizer = tokenizer
        self.opt_model = language_model
        self.opt_proj = nn.Linear(
            cfg.bridge_size.hidden_size, language_model.get_input_embeddings().embedding_dim
        )
        if cfg.freeze_lm:
            self.opt_model.requires_grad_(False)
        if cfg.lora is not None:
            add_lora(self.opt_model, cfg.lora)

    @classmethod
    def from_config(cls, cfg: ModelConfig, load_weights: bool = True) -> Self:
        """Build around the language model and tokenizer that the configuration names.

        Args:
            cfg: `opt_model` names a folder or a model of the hub; without it `opt_config` gives the sizes.
            load_weights: False builds the language model from `opt_config`, with random weights.

        Raises:
            ConfigError: language model or tokenizer are not there, or sizes are missing or unknown.
        """
        check_sizes(cfg.opt_config)
        tokenizer = load_tokenizer("model.opt_tokenizer", cfg.opt_tokenizer or cfg.opt_model, load_weights)
        dtype = PRECISIONS[cfg.lm_precision] if cfg.freeze_lm and cfg.lm_precision != "auto" else None
        if load_weights and cfg.opt_model is not None:
            model = cls(cfg, load_language_model(cfg.opt_model, dtype), tokenizer)
            model.sources["opt_model"] = cfg.opt_model
            if cfg.freeze_lm:
                model.external["opt_model"] = cfg.opt_model
            return model
        sizes = dict(cfg.opt_config)
        if tokenizer is not None and sizes:
            special = {
                key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")
            }
            sizes = special | sizes | {"vocab_size": len(tokenizer)}
        return cls(cfg, fresh_language_model(sizes, dtype), tokenizer)

    @cached_property
    def tokens(self) -> CaptionTokens:
        """How captions are written in the language model's tokens."""
        assert self.tokenizer is not None, "this model was built without a tokenizer"
        rows = self.opt_model.get_input_embeddings().num_embeddings
        return CaptionTokens.of(self.tokenizer, self.opt_model.config.model_type, rows)

    def frozen_parts(self) -> list[nn.Module]:
        """The vision encoder and the language model, as configured."""
        return super().frozen_parts() + ([self.opt_model] if self.cfg.freeze_lm else [])

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
            quantize(self.opt_model, self.cfg.lm_quantize, device)
        return super().place(device)

    def merge_lora(self) -> None:
        """Add LoRA's weights to those that they stand beside and take them out: the same model, as fast as without."""
        merge_lora(self.opt_model)

    def tied_names(self) -> set[str]:
        """The output head, where it shares the input embedding's weights."""
        head, embedding = self.opt_model.get_output_embeddings(), self.opt_model.get_input_embeddings()
        if head.weight is not embedding.weight:
            return set()
        return {
            f"opt_model.{name}.weight" for name, module in self.opt_model.named_modules() if module is head
        }

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
        words = self.opt_model.get_input_embeddings()(ids.to(device, non_blocking=True))
        inputs = torch.cat([prefix.to(words.dtype), words], dim=1)
        logits = logits_at(self.opt_model, inputs, rows, queries + columns - 1)
        return F.cross_entropy(logits.float(), targets)

    @cached_property
    def packs(self) -> bool:
        """Whether the language model reads the captions of an image in one sequence."""
        possible = can_be_packed(self.opt_model)
        if not possible:
            family = self.opt_model.config.model_type
            LOG.warning(
                "model.opt_model: a model of type %s reads the captions of an image one by one", family
            )
        return possible

    def packed_loss(self, prefix: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        """What `caption_loss` gives when each of I prefixes (I, Q, H) is repeated for its captions; reads it once."""
        device = prefix.device
        packed = pack(ids, labels, *prefix.shape[:2])
        words = self.opt_model.get_input_embeddings()(packed.ids.to(device, non_blocking=True))
        inputs = torch.cat([prefix.to(words.dtype), words], dim=1)
        rows, places, targets = (
            x.to(device, non_blocking=True) for x in (packed.rows, packed.places, packed.targets)
        )
        logits = logits_at(self.opt_model, inputs, rows, places, **packed.reading(device, inputs.dtype))
        return F.cross_entropy(logits.float(), targets)

    @torch.inference_mode()
    def generate_ids(
        self, images: Tensor, settings: GenerationSettings, generator: torch.Generator | None = None
    ) -> list[list[list[int]]]:
        """Token ids of `num_captions` captions an image; (B, 3, H, W) images, encoded once for all beams."""
        prompt = torch.tensor(self.tokens.prompt(self.cfg.prompt), device=self.device)
        words = self.opt_model.get_input_embeddings()(prompt).expand(len(images), -1, -1)
        inputs = torch.cat([self.prefix(images).to(words.dtype), words], dim=1)
        decoder = CachedDecoder(self.opt_model, inputs)
        return generate(decoder, len(images), self.tokens.stop, settings, generator)

    def generate(
        self, images: Tensor, settings: GenerationSettings, generator: torch.Generator | None = None
    ) -> list[list[str]]:
        """`num_captions` captions for each of (B, 3, H, W) images, best first."""
        ids = self.generate_ids(images, settings, generator)
        return [self.decode(captions) for captions in ids]

    def decode(self, ids: list[list[int]]) -> list[str]:
        """Token ids → text, stripped at both ends."""
        return self.tokens.decode(ids)
