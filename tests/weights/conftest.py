"""Fixtures that tests of the models share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from bita.models.base import BitaModel
from tests.weights.clip_files import BLOCKS, HEADS, PATCH, SIZE, WIDTH, State
from tests.weights.test_weights import stage_1


@pytest.fixture(scope="session")
def clip() -> CLIPVisionModel:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="quick_gelu",
    )
    model = CLIPVisionModel(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="session")
def images() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def source() -> BitaModel:
    torch.manual_seed(5)
    return stage_1()


@pytest.fixture(scope="module")
def encoder(source: BitaModel) -> State:
    """The encoder's weights by timm's names."""
    prefix = "visual_encoder.trunk."
    return {n.removeprefix(prefix): t for n, t in source.state_dict().items() if n.startswith(prefix)}


def put(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}
