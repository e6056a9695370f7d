"""What stands beside or in place of a frozen language model's weights: LoRA; 8 and 4 bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bita.config.parts import LoraSize
from bita.errors import ConfigError, UserError
from bita.models.bita_lm import BitaLM
from bita.models.language.generation import GenerationSettings
from bita.models.language.quantize import size_in_bytes
from bita.weights.load import load_checkpoint
from tests.models.language.families import GATED, captioner
from tests.models.test_models import TEXTS, batch
from tests.weights.test_weights import small

CPU = torch.device("cpu")


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


def linear_weights(model: BitaLM) -> int:
    """Weights of the language model's linear layers, without its head."""
    head = model.opt_model.get_output_embeddings()
    layers = [m for m in model.opt_model.modules() if type(m).__name__ in ("Linear", "Conv1D")]
    return sum(layer.weight.numel() for layer in layers if layer is not head)


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
        linear = linear_weights(model)
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
    linear = linear_weights(model)
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
