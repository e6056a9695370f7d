"""Stages 2 and 3: the query tokens' output is the prefix that a causal language model reads before it writes.

Shapes: B images, Q query tokens, T text tokens, H width of the language model, V its vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bita.batch import Batch
from bita.errors import ConfigError
from bita.models.base import PRECISIONS, BitaModel, sixteen_bit
from bita.models.generation import GenerationSettings, generate
from bita.models.tokenizers import load_tokenizer, not_there
from bita.schema import ModelConfig

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
"""The label of a position that carries no loss."""


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

    @classmethod
    def from_config(cls, cfg: ModelConfig, load_weights: bool = True) -> Self:
        """Build around the language model and tokenizer that the configuration names.

        Args:
            cfg: `opt_model` names a folder or a model of the hub; without it `opt_config` gives the sizes.
            load_weights: False builds the language model from `opt_config`, with random weights.

        Raises:
            ConfigError: language model or tokenizer are not there, or no sizes are given.
        """
        tokenizer = load_tokenizer("model.opt_tokenizer", cfg.opt_tokenizer or cfg.opt_model, load_weights)
        if load_weights and cfg.opt_model is not None:
            model = cls(cfg, load_language_model(cfg.opt_model), tokenizer)
            if cfg.freeze_lm:
                model.external["opt_model"] = cfg.opt_model
            return model
        vocabulary = {} if tokenizer is None else {"vocab_size": len(tokenizer)}
        return cls(cfg, fresh_language_model(dict(cfg.opt_config) | vocabulary), tokenizer)

    def frozen_parts(self) -> list[nn.Module]:
        """The vision encoder and the language model, as configured."""
        return super().frozen_parts() + ([self.opt_model] if self.cfg.freeze_lm else [])

    def place(self, device: torch.device) -> Self:
        """Move to a device; frozen parts take 16 bit there."""
        super().place(device)
        precision: str = self.cfg.lm_precision
        if precision == "auto":
            precision = sixteen_bit(device) if self.cfg.freeze_lm else "fp32"
        self.opt_model.to(PRECISIONS[precision])
        return self

    def tied_names(self) -> set[str]:
        """The output head, where it shares the input embedding's weights."""
        head, embedding = self.opt_model.get_output_embeddings(), self.opt_model.get_input_embeddings()
        if head.weight is not embedding.weight:
            return set()
        return {
            f"opt_model.{name}.weight" for name, module in self.opt_model.named_modules() if module is head
        }

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean cross-entropy of the captions' tokens, each ended by a line break."""
        ids, labels = self.tokenize(batch["text"])
        return {"loss": self.caption_loss(self.prefix(batch["image"]), ids, labels)}

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """B texts (the prompt on them already) → ids and labels (B, T), on the CPU, padded on the right.

        Labels are `IGNORED` on padding and on the tokens of the prompt, when there is one.
        """
        assert self.tokenizer is not None, "this model was built without a tokenizer"
        encoded = self.tokenizer(
            [text + "\n" for text in texts],
            padding="longest",
            padding_side="right",
            truncation=True,
            max_length=self.cfg.max_txt_len,
            return_tensors="pt",
        )
        labels = encoded.input_ids.masked_fill(encoded.attention_mask == 0, IGNORED)
        if self.cfg.prompt:
            labels[:, : len(self.tokenizer(self.cfg.prompt).input_ids)] = IGNORED
        return encoded.input_ids, labels

    def prefix(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, Q, H): what the language model reads in place of words."""
        prefix: Tensor = self.opt_proj(self.query_image(self.encode_image(images)))
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
        hidden = self._transformer()(inputs_embeds=inputs, use_cache=False).last_hidden_state
        before = hidden[rows, queries + columns - 1]
        logits: Tensor = self.opt_model.get_output_embeddings()(before)
        return F.cross_entropy(logits.float(), targets)

    @torch.inference_mode()
    def generate_ids(
        self, images: Tensor, settings: GenerationSettings, generator: torch.Generator | None = None
    ) -> list[list[list[int]]]:
        """Token ids of `num_captions` captions an image; (B, 3, H, W) images, encoded once for all beams."""
        assert self.tokenizer is not None, "this model was built without a tokenizer"
        prompt = torch.tensor(self.tokenizer(self.cfg.prompt).input_ids, device=self.device)
        words = self.opt_model.get_input_embeddings()(prompt).expand(len(images), -1, -1)
        inputs = torch.cat([self.prefix(images).to(words.dtype), words], dim=1)
        decoder = CachedDecoder(self._transformer(), self.opt_model.get_output_embeddings(), inputs)
        stop_id = self.tokenizer("\n", add_special_tokens=False).input_ids[0]
        return generate(decoder, len(images), stop_id, settings, generator)

    def generate(
        self, images: Tensor, settings: GenerationSettings, generator: torch.Generator | None = None
    ) -> list[list[str]]:
        """`num_captions` captions for each of (B, 3, H, W) images, best first."""
        ids = self.generate_ids(images, settings, generator)
        return [self.decode(captions) for captions in ids]

    def decode(self, ids: list[list[int]]) -> list[str]:
        """Token ids → text, stripped at both ends."""
        assert self.tokenizer is not None, "this model was built without a tokenizer"
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _transformer(self) -> Any:
        """The language model without its output head."""
        return self.opt_model.base_model


def load_language_model(source: str) -> PreTrainedModel:
    """A causal language model from a local folder, or by its name on the hub where that can be reached.

    Raises:
        ConfigError: it is not there, or transformers cannot read it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    except Exception as error:
        raise not_there("model.opt_model", source, error) from error


def fresh_language_model(sizes: dict[str, Any]) -> PreTrainedModel:
    """A causal language model with random weights; `sizes` are keys of its configuration, `model_type` among them.

    Raises:
        ConfigError: no sizes, or an unknown model type.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if not sizes:
        raise ConfigError(
            "model.opt_config: needs the sizes of the language model when model.opt_model is not read"
        )
    try:
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**{"model_type": "opt"} | dict(sizes)))
    except Exception as error:
        raise ConfigError(
            f"model.opt_config: transformers cannot build it: {str(error).splitlines()[0]}"
        ) from error


class CachedDecoder:
    """A causal language model that keeps the keys and values of what it has read (a `generation.Decoder`)."""

    def __init__(self, transformer: Any, head: nn.Module, inputs: Tensor) -> None:
        self.transformer, self.head, self.inputs = transformer, head, inputs
        self.cache: Cache | None = None

    def start(self, rows_per_image: int) -> Tensor:
        """Read (B, S, H) once, then repeat each image's keys and values; logits (B·rows_per_image, V)."""
        output = self.transformer(inputs_embeds=self.inputs, use_cache=True)
        self.cache = output.past_key_values
        self.cache.batch_repeat_interleave(rows_per_image)
        logits: Tensor = self.head(output.last_hidden_state[:, -1])
        return logits.repeat_interleave(rows_per_image, dim=0)

    def step(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Keep `rows` of the cache, read one token on each; logits (rows, V)."""
        assert self.cache is not None
        self.cache.batch_select_indices(rows)
        output = self.transformer(input_ids=tokens[:, None], past_key_values=self.cache, use_cache=True)
        logits: Tensor = self.head(output.last_hidden_state[:, -1])
        return logits
