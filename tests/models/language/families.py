"""Tiny language models of several families, and captioners around them, for the tests of decoders and adapters."""

from __future__ import annotations

from typing import Any

import torch

from bita.models.bita_lm import BitaLM
from tests.models.test_models import TEXTS
from tests.weights.test_weights import small

CAPTIONS = [*TEXTS, "many planes are parked near a terminal", "a river runs through dense green woods"] * 4
PLAIN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
GATED = PLAIN | {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}
SIZES: dict[str, dict[str, Any]] = {
    "opt": PLAIN
    | {"vocab_size": 600, "ffn_dim": 48, "word_embed_proj_dim": 24, "max_position_embeddings": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 300},
    "llama": GATED,
    "qwen2": GATED,
    "qwen3": GATED,
    "gemma2": GATED | {"final_logit_softcapping": 0.1},
    "granite": PLAIN | {"intermediate_size": 48, "logits_scaling": 0.1},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 300},
}
TOKENIZER = {"gpt2": "gpt2", "qwen2": "qwen", "qwen3": "qwen"}
"""Family → whose tokenizer it has here; the others have Llama's."""


def captioner(folder: str, **changes: Any) -> BitaLM:
    """A captioner with fresh weights around the language model in a folder."""
    torch.manual_seed(1)
    return BitaLM.from_config(small(arch="bita_opt", opt_model=folder, opt_config={}, **changes))
