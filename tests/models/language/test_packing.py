"""Captions of an image in one sequence: the loss and gradients of separate rows, for every family that can."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bita.errors import ConfigError
from bita.models.base import for_captions
from bita.models.language.decoder import IGNORED
from bita.models.language.generation import GenerationSettings
from bita.models.language.packing import can_be_packed, pack
from tests.models.test_models import TEXTS, batch
from tests.weights.test_weights import stage_2

FAMILIES: dict[str, dict[str, Any]] = {
    "opt": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 32,
        "word_embed_proj_dim": 16,
    },
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "llama": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
    },
    "qwen2": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
    },
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
}


def language_model(family: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, vocab_size=50, **FAMILIES[family])
    ).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_attend_by_position_can(family: str) -> None:
    assert can_be_packed(language_model(family)) == (family not in ("bloom", "mamba"))


def test_the_question_leaves_modes_as_they_were() -> None:
    model = language_model("opt").train()
    model.get_output_embeddings().eval()
    can_be_packed(model)
    assert model.training
    assert not model.get_output_embeddings().training


def test_places_by_hand() -> None:
    """Two captions of 3 and 2 tokens behind two queries; the first token of the second is learned, of the first not."""
    ids = torch.tensor([[5, 6, 7], [5, 8, 1]])
    labels = torch.tensor([[IGNORED, 6, 7], [5, 8, IGNORED]])
    packed = pack(ids, labels, images=1, queries=2)
    assert packed.ids.tolist() == [[5, 6, 7, 5, 8]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert packed.places.tolist() == [2, 3, 1, 5]
    assert labels[labels != IGNORED].tolist() == [6, 7, 5, 8]
    seen = [[int(x) for x in row] for row in packed.visible[0, 0]]
    assert seen[4] == [1, 1, 1, 1, 1, 0, 0]
    assert seen[6] == [1, 1, 0, 0, 0, 1, 1]
    assert seen[1] == [1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("prompt", ["", "a photo of"])
def test_loss_and_gradients_are_those_of_separate_rows(prompt: str) -> None:
    model = stage_2(prompt=prompt).eval()  # without dropout
    images = batch(TEXTS)["image"][:2]
    texts = ["a photo of a river", "a photo of two planes beside a terminal", "a photo of x"] * 2
    ids, labels = model.tokenize(texts)
    losses, gradients = [], []
    for loss in (model.caption_loss, lambda p, i, t: model.caption_loss(for_captions(p, len(i)), i, t)):
        model.zero_grad()
        value = loss(model.prefix(images), ids, labels)
        value.backward()
        losses.append(value.item())
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_a_prompt_that_leaves_nothing_to_learn_is_told() -> None:
    model = stage_2(prompt="a photo of")
    longest = model.cfg.max_txt_len = len(model.tokens.prompt("a photo of"))
    with pytest.raises(
        ConfigError, match=rf"^model\.max_txt_len: of {longest} tokens the first {longest} are those"
    ):
        model.tokenize(["a photo of a river", "a photo of two planes"])
    model.cfg.max_txt_len += 1
    assert (model.tokenize(["a photo of a river", "a photo of two planes"])[1] >= 0).sum() == 2


def test_more_positions_than_the_language_model_has_are_told() -> None:
    """Where it has learned a position each, another one is none; a GPU would end the process."""
    model = stage_2(prompt="", max_txt_len=100).eval()
    most, ahead = model.opt_model.config.max_position_embeddings, model.cfg.num_query_token
    prefix = torch.randn(1, ahead, model.decoder.width)
    longest = most - ahead - len(model.tokens.prompt("")) + 2  # the last token is written, not read
    settings = GenerationSettings(max_len=longest, min_len=longest, num_beams=2)
    assert len(model.write(prefix, settings)[0][0]) == longest - 1
    with pytest.raises(
        ConfigError, match=rf"^max_len={longest + 1}: the language model has {most} positions"
    ):
        model.write(prefix, GenerationSettings(max_len=longest + 1, num_beams=2))
    ids = torch.full((1, most - ahead), 5)
    assert model.caption_loss(prefix, ids, ids).isfinite()
    ids = torch.full((1, most - ahead + 1), 5)
    with pytest.raises(ConfigError, match=r"^model\.max_txt_len=100: the language model has"):
        model.caption_loss(prefix, ids, ids)
