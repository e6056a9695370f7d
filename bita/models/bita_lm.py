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

from bita.batch import Batch, Written
from bita.config.parts import CaptionerConfig, ModelConfig
from bita.errors import UserError
from bita.models.base import BitaModel, for_captions
from bita.models.language.adapters import lora_modules, merge_lora
from bita.models.language.consensus import by_consensus
from bita.models.language.decoder import IGNORED, CaptionTokens, cast_weights
from bita.models.language.generation import Candidate, GenerationSettings, Hypothesis, search
from bita.models.language.language_model import LanguageModel
from bita.models.language.packing import pack
from bita.models.language.tokenizers import TOKENIZER_FOLDER
from bita.models.products import fast_products
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
        """Return the vision encoder and, without `frozen_lm_dropout`, the language model, as configured."""
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
        """Return what a batch's loss counts in the mean over a split: its captions' tokens."""
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
        """Return what the decoder ties, such as an output head to the input embedding."""
        return {f"opt_model.{name}" for name in self.decoder.tied_names()}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean cross-entropy of the captions' tokens, each with what ends it (`CaptionTokens`).

        Where a batch brings captions that the model wrote itself, the loss is on these (`written_loss`), and on the
        batch's own as far as they count.
        """
        prefix = self.prefix_of(self.batch_tokens(batch))
        written = batch.get("written")
        if written is None:
            return {"loss": self.caption_loss(prefix, *self.tokenize(batch["text"]))}
        loss = self.written_loss(prefix, written)
        if not written.caption_weight:
            return {"loss": loss}
        own = self.caption_loss(prefix, *self.tokenize(batch["text"]))
        return {"loss": loss + written.caption_weight * own, "caption_loss": own.detach()}

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
        """Cross-entropy of `labels` (B, T; on the CPU), averaged over all that count; see `predicted`."""
        logits, targets, _ = self.predicted(prefix, ids, labels)
        return F.cross_entropy(logits, targets)

    def written_loss(self, prefix: Tensor, written: Written) -> Tensor:
        """Policy gradient: minus the mean over captions of advantage × log-likelihood (Rennie et al. 2017, eq. 7).

        A mean over captions, not over tokens, is the same on one process and on several.
        """
        logits, targets, captions = self.predicted(prefix, written.ids, written.labels)
        weights = written.weights.to(logits.device, non_blocking=True)[captions]
        return (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / len(written.weights)

    def predicted(self, prefix: Tensor, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, V) float32 of N labelled tokens, the labels (N,), and the caption (N,) of each.

        An image's captions stand in one sequence where the language model can read them so (`packing`). Logits are
        computed only where a label is: the positions are found on the CPU, so nothing waits.

        Args:
            prefix: (I, Q, H).
            ids: (B, T), on the CPU, B/I captions an image, side by side.
            labels: (B, T), `IGNORED` where nothing is learned.

        Raises:
            ConfigError: the language model has fewer positions.
        """
        captions, columns = (labels != IGNORED).nonzero(as_tuple=True)
        ahead, longest = prefix.shape[1], ids.shape[1]
        self.decoder.check_length(ahead + longest, f"model.max_txt_len={self.cfg.max_txt_len}")
        each = len(ids) // len(prefix)
        if each > 1 and self.packs and self.decoder.fits(ahead + longest, ahead + each * longest):
            packed = pack(ids, labels, *prefix.shape[:2])
            ids, rows, places = packed.ids, packed.rows, packed.places
        else:  # padding needs no mask: it is on the right, where a causal model cannot see it
            packed, prefix = None, for_captions(prefix, len(ids))
            rows, places = captions, ahead + columns - 1
        targets = labels[captions, columns]
        rows, places, targets, captions, ids = (
            x.to(prefix.device, non_blocking=True) for x in (rows, places, targets, captions, ids)
        )
        words = self.decoder.embed(ids)
        inputs = torch.cat([prefix.to(words.dtype), words], dim=1)
        reading = {} if packed is None else packed.reading(inputs.device, inputs.dtype)
        return self.decoder.logits_at(inputs, rows, places, **reading).float(), targets, captions

    @cached_property
    def packs(self) -> bool:
        """Whether the language model reads the captions of an image in one sequence."""
        return self.decoder.packs()

    @torch.inference_mode()
    def write(
        self,
        prefix: Tensor,
        settings: GenerationSettings,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[list[list[int]]]:
        """Token ids of `num_captions` captions for each of B prefixes (B, Q, H); see `search`."""
        found = self.search(prefix, settings, generators)
        return [[caption.ids for caption in captions] for captions in found]

    @torch.inference_mode()
    def search(
        self,
        prefix: Tensor,
        settings: GenerationSettings,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[list[Hypothesis]]:
        """`num_captions` captions for each of B prefixes (B, Q, H), read once for all beams.

        `generators` are for sampling, one an image (`generation.search`).
        """
        prompt = torch.tensor(self.tokens.prompt(self.cfg.prompt), device=self.device)
        words = self.decoder.embed(prompt).expand(len(prefix), -1, -1)
        inputs = torch.cat([prefix.to(words.dtype), words], dim=1)
        self.decoder.check_length(inputs.shape[1] + settings.max_new - 1, f"max_len={settings.max_len}")
        decoder = self.decoder.search(inputs, settings)
        with fast_products(settings.speed == "fast" and self.device.type == "cpu"):
            return search(decoder, len(prefix), self.tokens.stop, settings, generators)

    @torch.inference_mode()
    def generate_ids(
        self,
        images: Tensor,
        settings: GenerationSettings,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[list[list[int]]]:
        """Token ids of `num_captions` captions an image; (B, 3, H, W) images, encoded once for all beams.

        `generators` are for sampling, one an image (`generation.search`).
        """
        return self.write(self.prefix(images), settings, generators)

    @torch.inference_mode()
    def candidates(
        self,
        raw_tokens: Tensor,
        settings: GenerationSettings,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[list[Candidate]]:
        """See `BitaModel.candidates`."""
        prefix = self.prefix_of(raw_tokens).unflatten(0, (-1, settings.views)).mean(dim=1)
        consensus = settings.choose_by == "consensus"
        found = self.search(prefix, settings.every_beam() if consensus else settings, generators)
        written = [
            [
                Candidate(text, caption.ids, caption.log_probability)
                for text, caption in zip(self.decode([c.ids for c in captions]), captions, strict=True)
            ]
            for captions in found
        ]
        if not consensus:
            return written
        drawn = settings.use_nucleus_sampling
        return [by_consensus(captions, drawn)[: settings.num_captions] for captions in written]

    def decode(self, ids: list[list[int]]) -> list[str]:
        """Token ids → text, stripped at both ends."""
        return self.tokens.decode(ids)
