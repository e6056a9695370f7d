"""The language model that writes: any causal language model of transformers, with its own tokenizer.

`CaptionTokens` has the rules by which a caption becomes token ids, `load_language_model` and `fresh_language_model`
give the model, and `CachedDecoder` reads it token by token. docs/decoders.md says what holds for which family.

Shapes: B images, S input positions, T text tokens, H width of the language model, V its vocabulary.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from bita.errors import ConfigError, first_line
from bita.models.language.tokenizers import Remembered, not_there
from bita.packages import unpacked
from bita.registry import nearest

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
"""The label of a position that carries no loss."""
PUBLISHED_FAMILY = "opt"
GGUF = ".gguf"
LOGITS_CHANGED_BY = ("final_logit_softcapping", "output_logit_soft_cap", "logit_scale", "logits_scaling")
"""Configuration keys of models that do something to the logits after the output head."""
OLDER_KEYS = ("model_type", "rope_theta", "rope_scaling", "torch_dtype")
"""Keys that transformers still takes beside the fields of a configuration."""


@dataclasses.dataclass(frozen=True)
class CaptionTokens:
    """How captions are written in a tokenizer's ids: `start` … `stop`, padded on the right.

    Attributes:
        tokenizer: the language model's own.
        start: what comes before a text: what the tokenizer itself puts there, or its begin token, or its end token.
        stop: what ends a caption: the line break for OPT, as published; else the tokenizer's end token.
        start_is_learned: whether `start` is a label where there is no prompt: for OPT, as published.
    """

    tokenizer: PreTrainedTokenizerBase
    start: tuple[int, ...]
    stop: int
    start_is_learned: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, family: str, rows: int) -> Self:
        """Return the rules for a tokenizer and a model type of transformers whose input embedding has `rows` rows.

        Raises:
            ConfigError: the tokenizer has more entries than the model, or neither begin nor end token.
        """
        if len(tokenizer) > rows:
            raise ConfigError(
                f"model.opt_tokenizer: it has {len(tokenizer)} entries and the language model only {rows}; "
                "name the tokenizer that belongs to model.opt_model"
            )
        plain = tokenizer("a", add_special_tokens=False).input_ids
        whole = tokenizer("a").input_ids
        start = whole[: whole.index(plain[0])] if plain[0] in whole else []
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if not start and first is not None:
            start = [first]
        published = family == PUBLISHED_FAMILY
        line_break = tokenizer("\n", add_special_tokens=False).input_ids
        stop = line_break[0] if published else tokenizer.eos_token_id
        if not start or stop is None:
            raise ConfigError(
                "model.opt_tokenizer: it has neither a begin nor an end token; set eos_token in its folder"
            )
        return cls(tokenizer, tuple(start), stop, start_is_learned=published)

    def prompt(self, prompt: str) -> list[int]:
        """Ids of `start` and a prompt, which may be empty."""
        return [*self.start, *self._ids([prompt])[0]]

    def batch(self, texts: list[str], prompt: str, longest: int) -> tuple[Tensor, Tensor]:
        """B texts, the prompt on them already → ids and labels (B, T ≤ `longest`), padded on the right.

        Labels are `IGNORED` on padding, on the prompt, and on `start` (unless the published rule keeps it).

        Raises:
            ConfigError: the prompt leaves no token to learn.
        """
        rows = [[*self.start, *ids, self.stop][:longest] for ids in self._ids(texts)]
        silent = len(self.prompt(prompt)) if prompt or not self.start_is_learned else 0
        if silent >= longest:
            problem = (
                f"of {longest} tokens the first {silent} are those of model.prompt, so none is left to learn"
            )
            raise ConfigError(f"model.max_txt_len: {problem}; make it longer")
        pad = self.tokenizer.pad_token_id
        pad, width = self.stop if pad is None else pad, max(map(len, rows))
        ids = [[*row, *[pad] * (width - len(row))] for row in rows]
        labels = [[*[IGNORED] * silent, *row[silent:], *[IGNORED] * width][:width] for row in rows]
        return torch.tensor(ids), torch.tensor(labels)

    def decode(self, ids: list[list[int]]) -> list[str]:
        """Token ids → text, without `stop` and special tokens, stripped at both ends."""
        written = [row[:-1] if row and row[-1] == self.stop else row for row in ids]
        texts: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [text.strip() for text in texts]

    @cached_property
    def _ids(self) -> Remembered[list[int]]:
        return Remembered(lambda texts: self.tokenizer(texts, add_special_tokens=False).input_ids)


def load_language_model(source: str, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A causal language model from a local folder or .gguf file, or by its name on the hub where that can be reached.

    Args:
        source: a .gguf file is unpacked into plain weights (needs the package `gguf`).
        dtype: precision that the weights are read in; None takes the file's.

    Raises:
        ConfigError: it is not there, or transformers cannot read it.
    """
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    wanted: dict[str, Any] = {"dtype": dtype or "auto"}
    folder = source = unpacked("model.opt_model", source)
    if source.endswith(GGUF):
        folder, wanted["gguf_file"] = str(Path(source).parent), Path(source).name
        wanted["quantization_config"] = GgufConfig(dequantize=True)
    try:
        return AutoModelForCausalLM.from_pretrained(folder, **wanted)
    except Exception as error:
        raise not_there("model.opt_model", source, error) from error


def fresh_language_model(sizes: dict[str, Any], dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return a causal language model with random weights, created in `dtype` (None: float32).

    Args:
        sizes: keys of its configuration, `model_type` among them.
        dtype: nothing is ever held in another precision.

    Raises:
        ConfigError: no sizes, or transformers does not take them.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if not sizes:
        raise ConfigError(
            "model.opt_config: needs the sizes of the language model when model.opt_model is not read"
        )
    try:
        config = AutoConfig.for_model(**{"model_type": PUBLISHED_FAMILY} | sizes)
        return AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32)
    except Exception as error:
        raise ConfigError(f"model.opt_config: transformers cannot build it: {first_line(error)}") from error


def check_sizes(sizes: dict[str, Any]) -> None:
    """Raise ConfigError for a model type or a key of `model.opt_config` that transformers does not know."""
    from transformers import CONFIG_MAPPING

    family = sizes.get("model_type", PUBLISHED_FAMILY)
    if family not in CONFIG_MAPPING:
        hint = nearest(str(family), CONFIG_MAPPING.keys())
        raise ConfigError(f"model.opt_config.model_type: transformers has no {family!r}; {hint}")
    kind = CONFIG_MAPPING[family]
    known = {*kind().to_dict(), *kind.attribute_map, *OLDER_KEYS}
    for key in sizes:
        if key not in known:
            hint = nearest(key, known)
            raise ConfigError(f"model.opt_config.{key}: a model of type {family} has no such key; {hint}")


def head_is_plain(model: PreTrainedModel) -> bool:
    """Return whether the output head's values are the logits, with nothing done to them."""
    extras = (getattr(model.config.get_text_config(), name, None) for name in LOGITS_CHANGED_BY)
    return all(extra in (None, 1, 1.0) for extra in extras)


class CachedDecoder:
    """A causal language model that keeps what it has read, for each caption apart (a `generation.Decoder`).

    Keys and values are kept where the model's cache can be reordered by row; else all is read again at every step.
    """

    def __init__(self, model: PreTrainedModel, inputs: Tensor) -> None:
        self.model, self.inputs = model, inputs
        self.cache: Cache | None = None
        self.rows = torch.arange(len(inputs), device=inputs.device)[:, None]  # (B, R): each caption's row

    def start(self) -> Tensor:
        """Read the prefixes (B, S, H); logits (B, V)."""
        output = self.model(inputs_embeds=self.inputs, use_cache=True, logits_to_keep=1)
        cache: Any = getattr(output, "past_key_values", None)
        if can_be_reordered(cache):
            self.cache = cache
        logits: Tensor = output.logits[:, -1]
        return logits

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Read a token (B, R) on each caption, going on from those at `parents` (B, R); logits (B, R, V)."""
        rows = self.rows.expand_as(parents).gather(1, parents).flatten()
        self.rows = torch.arange(len(rows), device=rows.device).view(parents.shape)
        if self.cache is not None:
            self.cache.batch_select_indices(rows)
            output = self.model(
                input_ids=tokens.flatten()[:, None],
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        else:
            words = self.model.get_input_embeddings()(tokens.flatten()[:, None])
            self.inputs = torch.cat([self.inputs[rows], words], dim=1)
            output = self.model(inputs_embeds=self.inputs, use_cache=False, logits_to_keep=1)
        logits: Tensor = output.logits[:, -1]
        return logits.unflatten(0, parents.shape)

    def keep(self, images: Tensor) -> None:
        """Go on with the images at these places alone."""
        self.rows = self.rows[images]


def can_be_reordered(cache: Any) -> bool:
    """Return whether rows of a cache can be repeated and chosen: keys and values can, recurrent states cannot."""
    from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

    layers = getattr(cache, "layers", None) or []
    return bool(layers) and all(
        isinstance(layer, DynamicLayer) and not isinstance(layer, LinearAttentionCacheLayerMixin)
        for layer in layers
    )


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring the frozen weights, or all where none is trained apart, to a precision; one at a time, in place.

    Buffers stay: rotary frequencies lose their meaning in 16 bit. So do weights that are trained beside frozen ones
    (LoRA), which an optimizer moves in float32.
    """
    parameters = list(model.parameters())
    partly = any(p.requires_grad for p in parameters) and not all(p.requires_grad for p in parameters)
    for parameter in parameters:
        if parameter.is_floating_point() and not (partly and parameter.requires_grad):
            parameter.data = parameter.data.to(dtype)
