"""Any causal language model: its own tokens, its own loss, its own choice of words."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bita.errors import ConfigError
from bita.models.bita_lm import BitaLM
from bita.models.language.decoder import (
    IGNORED,
    CachedDecoder,
    can_be_reordered,
    check_sizes,
    fresh_language_model,
)
from bita.models.language.generation import GenerationSettings
from bita.models.language.shared import SharedDecoder, fits
from bita.prepare.tokenizers import make_family
from tests.models.language.families import GATED, PLAIN, SIZES, captioner
from tests.models.test_models import TEXTS, batch
from tests.weights.test_weights import small

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("family", "start", "stop"),
    [
        ("opt", "</s>", "\n"),
        ("gpt2", "<|endoftext|>", "<|endoftext|>"),
        ("llama", "<|begin_of_text|>", "<|end_of_text|>"),
        ("qwen3", "<|im_end|>", "<|im_end|>"),
    ],
)
def test_captions_start_and_stop_as_the_tokenizer_has_it(
    folders: dict[str, str], family: str, start: str, stop: str
) -> None:
    model = captioner(folders[family], prompt="a photo of", max_txt_len=40)
    texts = ["a photo of two ferries", "a photo of a pale house near a long river"]
    ids, labels = model.tokenize(texts)
    prompt = model.tokens.prompt("a photo of")
    assert model.tokenizer is not None
    for text, row, label in zip(texts, ids.tolist(), labels.tolist(), strict=True):
        spoken = [token for token in label if token != IGNORED]
        assert model.tokenizer.decode(row[0]) == start
        assert row[: len(prompt)] == prompt
        assert label[: len(prompt)] == [IGNORED] * len(prompt)
        assert model.tokenizer.decode(spoken[-1]) == stop
        assert spoken.count(spoken[-1]) == 1  # padding carries no label, though it may be the same token
        assert model.decode([spoken]) == [text.removeprefix("a photo of ")]
    short = captioner(folders[family], max_txt_len=5).tokenize(texts)
    assert short[0].shape == (2, 5)
    assert (short[1][:, 0] != IGNORED).all() == (family == "opt")  # published: `</s>` is predicted too


@pytest.mark.parametrize("family", list(SIZES))
def test_loss_and_greedy_choice_equal_transformers(folders: dict[str, str], family: str) -> None:
    model = captioner(folders[family]).eval()
    data = batch(TEXTS)
    ids, labels = model.tokenize(data["text"])
    prefix = model.prefix(data["image"])
    words = model.opt_model.get_input_embeddings()
    inputs = torch.cat([prefix, words(ids)], dim=1)
    whole = torch.cat([torch.full((4, 4), IGNORED), labels], dim=1)
    theirs = model.opt_model(inputs_embeds=inputs, labels=whole).loss
    assert torch.allclose(model.caption_loss(prefix, ids, labels), theirs, atol=1e-5)

    own = model.generate_ids(data["image"], GenerationSettings(num_beams=1, max_len=12, min_len=3))
    start = words(torch.tensor(model.tokens.start)).expand(4, -1, -1)
    row, expected = torch.cat([prefix, start], dim=1), []
    for length in range(11):  # everything read again for each token, nothing kept
        logits = model.opt_model(inputs_embeds=row, use_cache=False).logits[:, -1]
        if length < 2:
            logits[:, model.tokens.stop] = -torch.inf
        expected.append(logits.argmax(-1))
        row = torch.cat([row, words(expected[-1])[:, None]], dim=1)
    for found, tokens in zip(own, torch.stack(expected, dim=1).tolist(), strict=True):
        end = tokens.index(model.tokens.stop) + 1 if model.tokens.stop in tokens else None
        assert found[0] == tokens[:end]


@pytest.mark.parametrize(
    ("family", "shared"),
    [("llama", False), ("mamba", False), ("opt", True), ("gpt2", True), ("llama", True), ("gemma2", True)],
)
def test_what_is_kept_is_what_reading_again_gives(folders: dict[str, str], family: str, shared: bool) -> None:
    """Attention keeps keys and values; a recurrent model has none to choose from and reads again. An image leaves."""
    model = captioner(folders[family]).eval().opt_model
    inputs = torch.randn(3, 3, model.get_input_embeddings().embedding_dim)
    with torch.inference_mode():
        decoder = SharedDecoder(model, inputs, 2, 2) if shared else CachedDecoder(model, inputs)
        decoder.start()
        first = torch.tensor([[5, 6], [7, 8], [9, 10]])
        decoder.step(first, torch.zeros_like(first))
        decoder.keep(torch.tensor([0, 2]))
        kept = decoder.step(torch.tensor([[11, 12], [13, 14]]), torch.tensor([[1, 1], [1, 0]]))
        assert (decoder.cache is None) == (family == "mamba")
        words = model.get_input_embeddings()(torch.tensor([[6, 11], [6, 12], [10, 13], [9, 14]]))
        rows = torch.cat([inputs[[0, 0, 2, 2]], words], dim=1)
        again = model(inputs_embeds=rows, use_cache=False).logits[:, -1]
    assert torch.allclose(kept.flatten(0, 1), again, atol=1e-4)
    assert not can_be_reordered(None)


SEARCHES: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 5, "num_captions": 5},
    "greedy": {"num_beams": 1},
    "drawn": {"use_nucleus_sampling": True, "num_captions": 3, "temperature": 1.5},
}


@pytest.mark.parametrize("search", list(SEARCHES))
@pytest.mark.parametrize("family", sorted(SIZES.keys() - {"gemma2"}))  # whose low cap here makes tokens tie
def test_shared_keys_and_values_write_the_same(folders: dict[str, str], family: str, search: str) -> None:
    """With captions that stop early here and there; a recurrent model goes the plain way."""
    model = captioner(folders[family], prompt="a photo of").eval()
    images = torch.randn(9, 3, 56, 56, generator=torch.Generator().manual_seed(3))
    often = Counter(
        token
        for captions in model.generate_ids(images, GenerationSettings(max_len=14, num_captions=5))
        for caption in captions
        for token in caption[4:]
    )
    model.tokens = replace(model.tokens, stop=often.most_common(1)[0][0])
    written = []
    for speed in ("fast", "reference"):
        settings = GenerationSettings(max_len=14, min_len=3, speed=speed, **SEARCHES[search])  # type: ignore[arg-type]
        generators = [torch.Generator().manual_seed(number) for number in range(9)]
        written.append(model.generate_ids(images, settings, generators))
    assert written[0] == written[1]
    assert model.decoder.shares == (family != "mamba")


NARROW = {
    "gemma2": GATED | {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neo": PLAIN
    | {"num_heads": 4, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 24},
}
"""A window that sees less than a caption, and one that sees a caption, but not several behind each other."""


@pytest.mark.parametrize("family", NARROW)
def test_captions_that_a_window_cuts_off_are_read_the_plain_way(folders: dict[str, str], family: str) -> None:
    torch.manual_seed(1)
    sizes = {"model_type": family} | NARROW[family]
    cfg = small(
        arch="bita_opt", opt_model=None, opt_config=sizes, opt_tokenizer=folders["llama"], freeze_lm=False
    )
    model = BitaLM.from_config(cfg).eval()
    with torch.no_grad():
        for parameter in model.opt_model.parameters():
            parameter.mul_(3.0)
    assert model.packs
    texts = [f"{text} and then {other}" for text in TEXTS for other in TEXTS[:3]]
    prefix = 9 * torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    ids, labels = model.tokenize(texts)
    together = model.caption_loss(prefix, ids, labels)
    apart = model.caption_loss(prefix.repeat_interleave(6, 0), ids, labels)
    assert together.item() == pytest.approx(apart.item(), rel=1e-6)
    written = [
        model.write(
            prefix, GenerationSettings(num_beams=6, max_len=16, min_len=15, num_captions=6, speed=speed)
        )
        for speed in ("fast", "reference")
    ]
    assert written[0] == written[1]


def test_a_windows_width_is_counted_in_what_goes_by_it(folders: dict[str, str]) -> None:
    model = fresh_language_model({"model_type": "gemma2"} | SIZES["gemma2"] | {"sliding_window": 8})
    assert fits(model, 8, 100)
    assert not fits(model, 9, 9)
    model = fresh_language_model({"model_type": "gpt_neo"} | NARROW["gpt_neo"])
    assert fits(model, 9, 24)
    assert not fits(model, 9, 25)
    assert fits(captioner(folders["opt"]).opt_model, 60, 600)


def test_a_wrong_tokenizer_and_wrong_sizes_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    make_family([f"word{i} w{i}x" for i in range(300)] * 2, "llama", tmp_path, 900)
    with pytest.raises(ConfigError, match="entries and the language model only 300"):
        _ = captioner(folders["llama"], opt_tokenizer=str(tmp_path)).tokens
    with pytest.raises(ConfigError, match=r"opt_config\.hiden_size: .* did you mean 'hidden_size'"):
        check_sizes({"model_type": "llama", "hiden_size": 8})
    with pytest.raises(ConfigError, match="no 'lama'; did you mean 'llama'"):
        check_sizes({"model_type": "lama"})
    check_sizes(
        {"model_type": "gpt2", "num_hidden_layers": 2, "n_embd": 8}
    )  # both spellings of gpt2 are right


def test_frozen_weights_are_made_in_16_bit_and_buffers_keep_their_precision(folders: dict[str, str]) -> None:
    model = captioner(folders["llama"], lm_precision="bf16")
    assert {p.dtype for p in model.opt_model.parameters()} == {torch.bfloat16}
    model.place(CPU)
    assert {b.dtype for b in model.opt_model.buffers() if b.is_floating_point()} == {torch.float32}
    assert model(batch(TEXTS))["loss"].isfinite()
    assert len(model.generate(batch(TEXTS)["image"], GenerationSettings())) == 4
    fresh = fresh_language_model({"model_type": "opt"} | SIZES["opt"], torch.bfloat16)
    assert {p.dtype for p in fresh.parameters()} == {torch.bfloat16}
