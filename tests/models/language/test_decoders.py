"""Any causal language model: its own tokens, its own loss, its own choice of words; LoRA; 8 and 4 bit."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bita.config.parts import LoraSize
from bita.errors import ConfigError, UserError
from bita.models.bita_lm import BitaLM
from bita.models.language.decoder import (
    IGNORED,
    CachedDecoder,
    can_be_reordered,
    check_sizes,
    fresh_language_model,
)
from bita.models.language.generation import GenerationSettings
from bita.models.language.quantize import size_in_bytes
from bita.models.language.shared import SharedDecoder, fits
from bita.prepare.tokenizers import make_family
from bita.weights.load import load_checkpoint
from tests.models.test_models import TEXTS, batch
from tests.weights.test_weights import PARITY, small

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
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Family → folder with a tiny random model and its tokenizer, as its owner would publish it."""
    root = tmp_path_factory.mktemp("decoders")
    torch.manual_seed(0)
    for family, sizes in SIZES.items():
        model = fresh_language_model({"model_type": family} | sizes)
        with torch.no_grad():
            for parameter in model.parameters():  # as sure of its words as a trained model
                parameter.mul_(3.0)
        model.save_pretrained(root / family)
        if family == "opt":
            from transformers import AutoTokenizer

            AutoTokenizer.from_pretrained(PARITY / "tokenizers/opt").save_pretrained(root / family)
        else:
            make_family(CAPTIONS, TOKENIZER.get(family, "llama"), root / family, 300)
    return {family: str(root / family) for family in SIZES}


def captioner(folder: str, **changes: Any) -> BitaLM:
    torch.manual_seed(1)
    return BitaLM.from_config(small(arch="bita_opt", opt_model=folder, opt_config={}, **changes))


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


# LoRA


def with_lora(folder: str, **changes: Any) -> BitaLM:
    return captioner(folder, lora=LoraSize(r=4, alpha=8.0, dropout=0.5), **changes)


def trained(model: BitaLM) -> BitaLM:
    """A few steps with everything that may learn."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    model.train()
    for step in range(3):
        model(batch(TEXTS, seed=step))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama", "qwen3", "granite"])
def test_lora_trains_its_own_weights_and_merges(folders: dict[str, str], family: str) -> None:
    plain = captioner(folders[family]).eval()
    model = with_lora(folders[family])
    images = batch(TEXTS)["image"]
    assert torch.equal(model.eval()(batch(TEXTS))["loss"], plain(batch(TEXTS))["loss"])  # no effect yet
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert set(plain.state_dict()) < set(before)  # names stay
    trained(model)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name in changed if name.startswith("opt_model.")} == {n for n in before if ".lora_" in n}
    assert any(name.startswith("ift.") for name in changed)
    unmerged = model(batch(TEXTS))["loss"]
    captions = model.generate(images, GenerationSettings())
    model.merge_lora()
    assert not any(".lora_" in name for name in model.state_dict())
    assert torch.allclose(model(batch(TEXTS))["loss"], unmerged, atol=1e-5)
    assert model.generate(images, GenerationSettings()) == captions
    assert set(plain.state_dict()) == set(model.state_dict())


def test_lora_checkpoint_holds_only_its_weights_of_the_language_model(
    folders: dict[str, str], tmp_path: Path
) -> None:
    model = trained(with_lora(folders["llama"], freeze_vit=False))
    state = model.checkpoint_state()
    own = [name for name in state if name.startswith("opt_model.")]
    assert len(own) == 2 * 2 * 2  # A and B of queries and values of two layers
    assert all(".lora_" in name for name in own)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    again = with_lora(folders["llama"], freeze_vit=False).eval()
    assert "LoRA 8/8" in str(load_checkpoint(again, tmp_path))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    again = with_lora(folders["llama"], freeze_vit=False)
    again.load_checkpoint_state(state)
    assert torch.equal(again.eval()(batch(TEXTS))["loss"], model(batch(TEXTS))["loss"])
    with pytest.raises(UserError, match=r"has LoRA weights of rank 4 .* set model\.lora"):
        load_checkpoint(captioner(folders["llama"], freeze_vit=False), tmp_path)


def test_lora_starts_from_a_checkpoint_without(folders: dict[str, str], tmp_path: Path) -> None:
    """As after stage 2; the language model may be the checkpoint's own, trained along."""
    sizes = {"model_type": "llama"} | GATED
    tokenizer = {"opt_model": None, "opt_tokenizer": folders["llama"], "opt_config": sizes}
    first = BitaLM.from_config(small(arch="bita_opt", freeze_lm=False, freeze_vit=False, **tokenizer)).eval()
    save_file(
        {n: t.contiguous() for n, t in first.checkpoint_state().items()}, tmp_path / "model.safetensors"
    )
    second = BitaLM.from_config(small(arch="bita_opt", lora=LoraSize(), freeze_vit=False, **tokenizer)).eval()
    assert "LoRA 0/8 (fresh, without effect before training)" in str(load_checkpoint(second, tmp_path))
    assert torch.equal(first(batch(TEXTS))["loss"], second(batch(TEXTS))["loss"])


def test_lora_in_16_bit_learns_in_float32_and_bad_layers_are_refused(folders: dict[str, str]) -> None:
    model = with_lora(folders["qwen3"], lm_precision="bf16").place(CPU)
    kinds = {(".lora_" in n, p.dtype) for n, p in model.opt_model.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    dropouts = [m for n, m in model.train().opt_model.named_modules() if "lora_dropout" in n]
    assert dropouts
    assert all(m.training for m in dropouts)
    assert not model.opt_model.training
    trained(model)
    with pytest.raises(ConfigError, match=r"model\.lora\.target_modules=\['nowhere'\]"):
        captioner(folders["llama"], lora=LoraSize(target_modules=["nowhere"]))


# 8 and 4 bit


def memorised(folder: str, path: Path) -> Path:
    """The checkpoint of a model that has learnt a caption an image by heart, so that it is sure of its words."""
    model = captioner(folder, freeze_lm=False, freeze_vit=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(batch(TEXTS))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    save_file({n: t.contiguous() for n, t in model.checkpoint_state().items()}, path / "model.safetensors")
    return path


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama", "qwen3"])
def test_8_bit_writes_the_same_with_less_memory(folders: dict[str, str], family: str, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    checkpoint = memorised(folders[family], tmp_path)
    images = batch(TEXTS)["image"].repeat(5, 1, 1, 1)
    images += 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    written, sizes, linear = [], [], 0
    for kind in ("none", "int8"):
        model = captioner(folders[family], lm_quantize=kind, freeze_vit=False, freeze_lm=False).eval()
        load_checkpoint(model, checkpoint)
        head = model.opt_model.get_output_embeddings()
        layers = [m for m in model.opt_model.modules() if type(m).__name__ in ("Linear", "Conv1D")]
        linear = sum(layer.weight.numel() for layer in layers if layer is not head)
        model.place(CPU)
        written.append(model.generate(images, GenerationSettings(max_len=16)))
        sizes.append(size_in_bytes(model.opt_model))
    same = [a == b for a, b in zip(*written, strict=True)]
    assert sum(same) >= 0.95 * len(same)
    assert len({captions[0] for captions in written[0]}) >= 2
    assert 0.8 * linear * 3 < sizes[0] - sizes[1] <= linear * 3  # scales take the rest


@pytest.mark.parametrize("family", ["opt", "gpt2", "qwen3"])
def test_4_bit_takes_an_eighth_and_writes(folders: dict[str, str], family: str) -> None:
    pytest.importorskip("bitsandbytes")
    model = captioner(folders[family]).eval()
    prefix = torch.randn(2, 5, model.opt_model.get_input_embeddings().embedding_dim)
    exact, before = model.opt_model(inputs_embeds=prefix).logits, size_in_bytes(model.opt_model)
    head = model.opt_model.get_output_embeddings()
    layers = [m for m in model.opt_model.modules() if type(m).__name__ in ("Linear", "Conv1D")]
    linear = sum(layer.weight.numel() for layer in layers if layer is not head)
    model.cfg.lm_quantize = "int4"
    model.place(CPU)
    rough = model.opt_model(inputs_embeds=prefix).logits
    assert 0.005 < ((rough - exact).norm() / exact.norm()).item() < 0.5
    assert 0.85 * linear * 3.5 < before - size_in_bytes(model.opt_model) <= linear * 3.5
    assert len(model.generate(batch(TEXTS)["image"], GenerationSettings(num_beams=2, max_len=6))) == 4


def test_lora_is_merged_before_8_bit(folders: dict[str, str]) -> None:
    pytest.importorskip("torchao")
    model = trained(with_lora(folders["llama"]))
    full = model(batch(TEXTS))["loss"]
    model.cfg.lm_quantize = "int8"
    less = model.place(CPU)(batch(TEXTS))["loss"]
    assert not any(".lora_" in name for name, _ in model.named_parameters())
    assert 0 < (full - less).abs() < 0.02 * full
