"""Tiny language models that tests of decoders and adapters share."""

from __future__ import annotations

import pytest
import torch

from bita.models.language.decoder import fresh_language_model
from bita.prepare.tokenizers import make_family
from tests.models.language.families import CAPTIONS, SIZES, TOKENIZER
from tests.weights.test_weights import PARITY


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
