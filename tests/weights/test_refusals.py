"""Weights that do not fit, or are not whole, are refused in one line, and the model stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, CLIPVisionModel

from bita.errors import UserError
from bita.models.base import BitaModel
from bita.weights.layouts import published
from bita.weights.load import load_bert, load_vision
from tests.weights.clip_files import by_hand, openai, saved
from tests.weights.test_weights import refused, stage_1


def refused_vision(model: BitaModel, path: Path) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_vision(model, path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    return str(error.value)


def test_wrong_depth(clip: CLIPVisionModel, tmp_path: Path) -> None:
    path = saved(openai(clip), tmp_path)
    assert "it holds 4 blocks, and model.vit_depth asks for 5" in refused_vision(stage_1(vit_depth=5), path)

    path = saved({"model": published(stage_1().state_dict())}, tmp_path)
    deeper, shallower = stage_1(), stage_1()
    del shallower.ift.layers[1]
    deeper.ift.layers.append(deeper.ift.layers[0])
    assert "IFT is not complete in it: it holds 2 blocks, and model.bridge_size.layers asks for 3" in refused(
        deeper, path
    )
    assert "its IFT has 2 layers; set model.bridge_size.layers=2, it is 1" in refused(shallower, path)


def test_wrong_width_and_patch(clip: CLIPVisionModel, tmp_path: Path) -> None:
    path = saved(by_hand(clip), tmp_path)
    wide = stage_1(vit_args={"embed_dim": 64, "num_heads": 4, "patch_size": 14})
    message = refused_vision(wide, path)
    assert "model.vit_model=clip_L is another width or patch size" in message
    assert "32" in message
    assert "64" in message
    fine = stage_1(vit_args={"embed_dim": 32, "num_heads": 4, "patch_size": 7})
    assert "(32, 3, 14, 14) there and (32, 3, 7, 7) in the model" in refused_vision(fine, path)


def test_another_encoders_file(tmp_path: Path) -> None:
    path = saved({"stem.weight": torch.zeros(2), "head.bias": torch.zeros(2)}, tmp_path)
    assert "29 of 29 tensors of clip_L are not in it" in refused_vision(stage_1(), path)


def test_wrong_vocabulary(tmp_path: Path) -> None:
    state = published(stage_1().state_dict())
    for name in [n for n in state if "word_embeddings" in n or "predictions.bias" in n or "decoder" in n]:
        state[name] = torch.cat([state[name]] * 2)
    message = refused(stage_1(), saved({"model": state}, tmp_path))
    assert "other vocabulary" in message
    assert "244 words there and 122 here" in message
    assert message.endswith("model.text_tokenizer=FOLDER, the folder text_tokenizer of its run")

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertForMaskedLM(BertConfig(**sizes, vocab_size=130, max_position_embeddings=40)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"a vocabulary of 130 words, and the tokenizer has 122 with \[DEC\]"):
        load_bert(stage_1(), str(tmp_path))


def test_half_a_sharded_model(clip: CLIPVisionModel, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path, max_shard_size="40KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    missing = shards[1].name
    shards[1].unlink()
    for path in (tmp_path, shards[0], tmp_path / "model.safetensors.index.json"):
        with pytest.raises(UserError) as error:
            load_vision(stage_1(), path)
        assert f"1 of {len(shards)} shards missing, {missing}" in str(error.value)
    (tmp_path / "model.safetensors.index.json").unlink()
    message = refused_vision(stage_1(), shards[0])
    assert f"one of {len(shards)} shards, and model.safetensors.index.json is not beside it" in message


def test_an_index_that_lies(clip: CLIPVisionModel, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path, max_shard_size="40KB")
    index = tmp_path / "model.safetensors.index.json"
    entries = json.loads(index.read_text())
    names = sorted(entries["weight_map"].items(), key=lambda entry: entry[1])
    moved = names[0][0]
    index.write_text(json.dumps(entries | {"weight_map": entries["weight_map"] | {moved: names[-1][1]}}))
    assert f"{moved} should be in {names[-1][1]}" in refused_vision(stage_1(), tmp_path)
    index.write_text(json.dumps({"weight_map": {moved: "../elsewhere.safetensors"}}))
    with pytest.raises(UserError, match="outside its folder; refused"):
        load_vision(stage_1(), tmp_path)
    index.write_text("{")
    with pytest.raises(UserError, match="not a readable index"):
        load_vision(stage_1(), tmp_path)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_infinities_in_a_sixteen_bit_file(bad: float, clip: CLIPVisionModel, tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in by_hand(clip).items()}
    state["transformer.resblocks.1.mlp.c_fc.weight"][3, 5] = bad
    message = refused_vision(stage_1(), saved(state, tmp_path))
    assert "visual_encoder.trunk.blocks.1.mlp.fc1.weight holds infinite values or NaN (float16)" in message
    report = load_vision(
        stage_1(vit_depth=1), saved(state, tmp_path)
    )  # a block that is not kept does no harm
    assert report.loaded["visual_encoder"] == 17


def test_an_archive_that_would_run_code(tmp_path: Path) -> None:
    import pickle
    import zipfile

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (eval, ("open('/tmp/bita_was_here', 'w').close()",))

    Path("/tmp/bita_was_here").unlink(missing_ok=True)
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("evil/constants.pkl", b"")
        archive.writestr("evil/data.pkl", pickle.dumps(Evil()))
    assert "could run code" in refused_vision(stage_1(), tmp_path / "evil.pt")
    assert not Path("/tmp/bita_was_here").exists()
