"""What stands behind `model.decoder`: the interface of what writes captions, and transformers' language models.

Shapes: B images, S input positions, H width of the language model, V its vocabulary.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from bita.config.parts import LoraSize, ModelConfig
from bita.errors import ConfigError
from bita.models.language.adapters import add_lora
from bita.models.language.decoder import (
    CachedDecoder,
    check_sizes,
    fresh_language_model,
    head_is_plain,
    load_language_model,
)
from bita.models.language.generation import Decoder, GenerationSettings
from bita.models.language.packing import can_be_packed
from bita.models.language.quantize import quantize
from bita.models.language.tokenizers import LANGUAGE_MODEL_FOLDER, load_tokenizer
from bita.precision import PRECISIONS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)


class LanguageModel:
    """What writes captions after a prefix; one of your own extends it and is registered (docs/extending.md).

    Attributes:
        network: all weights; the captioning model's part `opt_model`.
        tokenizer: none when only token ids will be given.
        width: H, of an input embedding.
        vocabulary: V.
        family: decides how captions are written in ids (`CaptionTokens.of`).
        source: where the weights were read from, if they were.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        width: int,
        vocabulary: int,
        family: str = "",
        source: str | None = None,
    ) -> None:
        self.network, self.tokenizer, self.source = network, tokenizer, source
        self.width, self.vocabulary, self.family = width, vocabulary, family

    @classmethod
    def from_config(cls, cfg: ModelConfig, load_weights: bool = True) -> Self:
        """Build what a configuration describes; with `load_weights=False` without reading weights from files."""
        raise NotImplementedError

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings (…, H) of token ids (…)."""
        raise NotImplementedError

    def logits_at(self, inputs: Tensor, rows: Tensor, positions: Tensor, **reading: Tensor) -> Tensor:
        """Logits (N, V) of the token after each of N places of inputs (B, S, H), read from left to right."""
        raise NotImplementedError

    def search(self, inputs: Tensor, settings: GenerationSettings) -> Decoder:
        """Return what reads on, token by token, after inputs (B, S, H)."""
        raise NotImplementedError

    def packs(self) -> bool:
        """Return whether `logits_at` takes the mask and the positions of packed captions (`packing`)."""
        return False

    def check_length(self, length: int, key: str) -> None:
        """Raise ConfigError where there are fewer positions than `length`, which the value of `key` asks for."""

    def fits(self, length: int, places: int) -> bool:
        """Return whether captions in a sequence of `places` see all of prefix and own words, `length` of them."""
        return True

    def tied_names(self) -> set[str]:
        """Names in the network's state that are second names of one tensor."""
        return set()

    def save(self, folder: Path, max_shard: str) -> bool:
        """Write the weights for an export below a folder; whether they are all there and need no other place."""
        return False

    def add_lora(self, size: LoraSize) -> None:
        """Put low-rank weights beside the frozen ones; raises ConfigError where the decoder cannot."""
        raise ConfigError("model.lora: is for language models of transformers; set it to null")

    def quantize(self, kind: str, device: torch.device) -> None:
        """Turn linear layers to 8 or 4 bit; raises ConfigError where the decoder cannot."""
        raise ConfigError("model.lm_quantize: is for language models of transformers; set it to none")


class TransformersDecoder(LanguageModel):
    """Any causal language model of transformers.

    Args:
        model: the language model.
        tokenizer: its own.
        source: where it was read from, if it was.
    """

    network: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        source: str | None = None,
    ) -> None:
        table = model.get_input_embeddings()
        super().__init__(
            model,
            tokenizer,
            width=table.embedding_dim,
            vocabulary=table.num_embeddings,
            family=model.config.model_type,
            source=source,
        )

    @classmethod
    def from_config(cls, cfg: ModelConfig, load_weights: bool = True) -> Self:
        """`opt_model` from its folder or by its name; without it, or without weights, of the sizes in `opt_config`.

        Raises:
            ConfigError: language model or tokenizer are not there, or sizes are missing or unknown.
        """
        check_sizes(cfg.opt_config)
        tokenizer = load_tokenizer("model.opt_tokenizer", cfg.opt_tokenizer or cfg.opt_model, load_weights)
        dtype = PRECISIONS[cfg.lm_precision] if cfg.freeze_lm and cfg.lm_precision != "auto" else None
        if load_weights and cfg.opt_model is not None:
            return cls(load_language_model(cfg.opt_model, dtype), tokenizer, cfg.opt_model)
        sizes = dict(cfg.opt_config)
        if tokenizer is not None and sizes:
            special = {
                key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")
            }
            sizes = special | sizes | {"vocab_size": len(tokenizer)}
        return cls(fresh_language_model(sizes, dtype), tokenizer)

    def embed(self, ids: Tensor) -> Tensor:
        """See `LanguageModel.embed`."""
        words: Tensor = self.network.get_input_embeddings()(ids)
        return words

    def logits_at(self, inputs: Tensor, rows: Tensor, positions: Tensor, **reading: Tensor) -> Tensor:
        """See `LanguageModel.logits_at`; the head reads only these places where it is plain.

        `reading` holds mask and positions, where they are not plainly from left to right.
        """
        if head_is_plain(self.network):
            trunk = self.network.base_model
            hidden = trunk(inputs_embeds=inputs, use_cache=False, **reading).last_hidden_state
            logits: Tensor = self.network.get_output_embeddings()(hidden[rows, positions])
            return logits
        everywhere: Tensor = self.network(inputs_embeds=inputs, use_cache=False, **reading).logits
        return everywhere[rows, positions]

    def search(self, inputs: Tensor, settings: GenerationSettings) -> Decoder:
        """See `LanguageModel.search`; the captions of an image share keys and values where the model allows it."""
        from bita.models.language.shared import SharedDecoder  # transformers takes seconds to import

        steps, ahead = settings.max_new - 1, inputs.shape[1]
        places = ahead + steps * settings.width
        if settings.speed == "fast" and self.shares and self.fits(ahead + steps, places):
            return SharedDecoder(self.network, inputs, steps, settings.width)
        return CachedDecoder(self.network, inputs)

    @cached_property
    def shares(self) -> bool:
        """Whether the captions of an image can share its keys and values; found out by trying."""
        return can_be_packed(self.network)

    def packs(self) -> bool:
        """See `LanguageModel.packs`; found out by trying."""
        if not self.shares:
            LOG.warning(
                "model.opt_model: a model of type %s reads the captions of an image one by one", self.family
            )
        return self.shares

    def check_length(self, length: int, key: str) -> None:
        """See `LanguageModel.check_length`; the table of a model that learned its positions ends there."""
        most = getattr(self.network.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and length > most:
            asked = f"query tokens, prompt and caption may take {length}"
            raise ConfigError(f"{key}: the language model has {most} positions, and {asked}; make it less")

    def fits(self, length: int, places: int) -> bool:
        """See `LanguageModel.fits`."""
        from bita.models.language.shared import fits

        return fits(self.network, length, places)

    def tied_names(self) -> set[str]:
        """Return the output head, where it shares the input embedding's weights."""
        head, embedding = self.network.get_output_embeddings(), self.network.get_input_embeddings()
        if head.weight is not embedding.weight:
            return set()
        return {f"{name}.weight" for name, module in self.network.named_modules() if module is head}

    def save(self, folder: Path, max_shard: str) -> bool:
        """See `LanguageModel.save`: as transformers saves it."""
        self.network.save_pretrained(folder / LANGUAGE_MODEL_FOLDER, max_shard_size=max_shard)
        return True

    def add_lora(self, size: LoraSize) -> None:
        """See `LanguageModel.add_lora`."""
        add_lora(self.network, size)

    def quantize(self, kind: str, device: torch.device) -> None:
        """See `LanguageModel.quantize`."""
        quantize(self.network, kind, device)
