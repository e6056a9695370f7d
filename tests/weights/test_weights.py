"""Loading weights: what fits is loaded and reported part by part; what does not is one clear line."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file

from bita.build import build_model
from bita.config.parts import BridgeSize, ModelConfig
from bita.errors import UserError
from bita.models.base import BitaModel
from bita.models.bita_itc import BitaITC
from bita.models.bita_lm import BitaLM
from bita.models.vision import resize_positions
from bita.weights.files import WeightFile
from bita.weights.layouts import published
from bita.weights.load import load_checkpoint, load_vision

PARITY = Path(__file__).parents[1] / "fixtures/parity"
SMALL = ModelConfig(
    vit_model="clip_L",
    vit_depth=2,
    vit_args={"embed_dim": 32, "num_heads": 4, "patch_size": 14},
    image_size=56,
    bridge_size=BridgeSize(hidden_size=24, layers=2, heads=2, intermediate_size=48, max_positions=40),
    num_query_token=4,
    embed_dim=16,
    text_model=None,
    text_tokenizer=str(PARITY / "tokenizers/bert"),
    opt_model=str(PARITY / "opt_model"),
)


def small(**changes: object) -> ModelConfig:
    cfg = copy.deepcopy(SMALL)
    for key, value in changes.items():
        setattr(cfg, key, value)
    return cfg


def stage_1(**changes: object) -> BitaITC:
    model = build_model(small(**changes), load_weights=False)
    assert isinstance(model, BitaITC)
    return model


def stage_2(**changes: object) -> BitaLM:
    return BitaLM.from_config(small(arch="bita_opt", **changes))


def equal(a: BitaModel, b: BitaModel, prefix: str = "") -> bool:
    other = b.state_dict()
    return all(
        torch.equal(t, other[n]) for n, t in a.state_dict().items() if n.startswith(prefix) and n in other
    )


def test_checkpoint_state_round_trip_is_exact(tmp_path: Path) -> None:
    first, second = stage_1(), stage_1()
    assert not equal(first, second)
    save_file(first.checkpoint_state(), tmp_path / "model.safetensors")
    report = load_checkpoint(second, tmp_path)
    assert equal(first, second)
    assert report.loaded == report.total


def test_published_layout_round_trip(tmp_path: Path) -> None:
    first, second = stage_1(), stage_1()
    torch.save({"model": published(first.state_dict())}, tmp_path / "checkpoint_4.pth")
    report = load_checkpoint(second, tmp_path / "checkpoint_4.pth")
    assert equal(first, second)
    assert report.unused == []


def test_stage_1_feeds_stage_2_and_the_report_says_what_is_fresh(tmp_path: Path) -> None:
    first, second = stage_1(), stage_2()
    save_file(first.checkpoint_state(), tmp_path / "model.safetensors")
    report = str(load_checkpoint(second, tmp_path))
    assert equal(second, first, "ift.")
    assert equal(second, first, "visual_encoder.")
    assert "opt_proj 0/2 (fresh: stage 1 has none)" in report
    assert f"language model 0/36 (from {PARITY / 'opt_model'}, not in file)" in report
    assert "text side and contrastive head" in report


def test_a_language_model_that_is_trained_along_may_be_fresh(tmp_path: Path) -> None:
    save_file(stage_1().checkpoint_state(), tmp_path / "model.safetensors")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32}
    changes = {"opt_model": None, "opt_config": sizes, "opt_tokenizer": str(PARITY / "tokenizers/opt")}
    report = str(load_checkpoint(stage_2(**changes, freeze_lm=False), tmp_path))
    assert "(fresh: trained along)" in report
    assert "language model is not complete" in refused(stage_2(**changes), tmp_path)


def test_weights_that_a_checkpoint_replaced_are_kept_in_the_next_one(tmp_path: Path) -> None:
    """A tuned encoder, then frozen: no external file holds it, so the next stage's checkpoint must."""
    tuned, fresh, model = stage_1(freeze_vit=False), stage_1(), stage_2()
    save_file(
        {n: t for n, t in fresh.state_dict().items() if n.startswith("visual_encoder.")},
        tmp_path / "vit.safetensors",
    )
    save_file(tuned.checkpoint_state(), tmp_path / "model.safetensors")
    load_vision(model, tmp_path / "vit.safetensors")
    assert not any(name.startswith("visual_encoder.") for name in model.checkpoint_state())
    load_checkpoint(model, tmp_path / "model.safetensors")
    kept = model.checkpoint_state()
    assert equal(model, tuned, "visual_encoder.")
    assert all(name in kept for name in model.state_dict() if name.startswith("visual_encoder."))


def test_a_part_that_was_frozen_before_may_be_trained_from_its_own_file(tmp_path: Path) -> None:
    first, model = stage_1(), stage_2(freeze_vit=False, freeze_lm=False)
    save_file(
        {n: t for n, t in first.state_dict().items() if n.startswith("visual_encoder.")},
        tmp_path / "vit.safetensors",
    )
    load_vision(first, tmp_path / "vit.safetensors")
    save_file(first.checkpoint_state(), tmp_path / "model.safetensors")
    load_vision(model, tmp_path / "vit.safetensors")
    report = str(load_checkpoint(model, tmp_path / "model.safetensors"))
    assert f"from {tmp_path / 'vit.safetensors'}, not in file" in report
    assert f"from {PARITY / 'opt_model'}, not in file" in report


def test_frozen_language_model_stays_out_of_checkpoints_and_a_trained_one_goes_in() -> None:
    assert not any(name.startswith("opt_model.") for name in stage_2().checkpoint_state())
    trained = stage_2(freeze_lm=False)
    names = [name for name in trained.checkpoint_state() if name.startswith("opt_model.")]
    assert "opt_model.model.decoder.embed_tokens.weight" in names
    assert "opt_model.lm_head.weight" not in names  # tied: saved once
    other = stage_2(freeze_lm=False)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.5)
    other.load_checkpoint_state(trained.checkpoint_state())
    assert torch.equal(
        other.opt_model.get_output_embeddings().weight, trained.opt_model.get_input_embeddings().weight
    )


def test_openai_and_lavis_and_timm_vision_files_give_the_same_encoder(tmp_path: Path) -> None:
    deep = timm.create_model(
        "vit_large_patch14_clip_quickgelu_224", num_classes=0, img_size=56, depth=3, embed_dim=32, num_heads=4
    )
    torch.save(deep.state_dict(), tmp_path / "timm.pth")
    lavis = {
        name.removeprefix("visual_encoder."): tensor
        for name, tensor in published(
            {f"visual_encoder.trunk.{n}": t for n, t in deep.state_dict().items()}
        ).items()
    }
    torch.save(lavis, tmp_path / "lavis.pth")
    openai = {f"visual.{n}": t for n, t in lavis.items()} | {"token_embedding.weight": torch.zeros(3, 2)}
    torch.save(openai, tmp_path / "openai.pth")
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    outputs = []
    for file in ("timm.pth", "lavis.pth", "openai.pth"):
        model = stage_1().eval()
        report = str(load_vision(model, tmp_path / file))
        assert "vision 29/29" in report
        assert "visual_encoder" in model.external
        assert not any(name.startswith("visual_encoder.") for name in model.checkpoint_state())
        outputs.append(model.visual_encoder(images))
    deep.norm, deep.blocks = torch.nn.Identity(), deep.blocks[:2]
    for output in outputs:
        assert torch.allclose(output, deep.forward_features(images), atol=1e-6)


def test_positions_are_resized_for_another_image_size(tmp_path: Path) -> None:
    torch.save({"model": published(stage_1().state_dict())}, tmp_path / "c.pth")
    larger = stage_1(image_size=112)
    load_checkpoint(larger, tmp_path / "c.pth")
    assert larger.visual_encoder(torch.zeros(1, 3, 112, 112)).shape == (1, 65, 32)


def test_resized_positions_keep_corners_and_class_token() -> None:
    positions = torch.randn(1, 17, 3, generator=torch.Generator().manual_seed(0))
    resized = resize_positions(positions, 50, align_corners=True)
    assert resized.shape == (1, 50, 3)
    assert torch.equal(resized[:, 0], positions[:, 0])
    for old, new in ((1, 1), (4, 7), (13, 43), (16, 49)):
        assert torch.allclose(resized[:, new], positions[:, old], atol=1e-6)


def refused(model: BitaModel, path: Path) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_checkpoint(model, path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    return message


def test_refusals_are_one_line_and_change_nothing(tmp_path: Path) -> None:
    torch.save({"model": published(stage_1().state_dict())}, tmp_path / "good.pth")
    assert "(1, 4, 24) there and (1, 5, 24)" in refused(stage_1(num_query_token=5), tmp_path / "good.pth")

    partly = {n: t for n, t in stage_1().checkpoint_state().items() if "ift.layers.1" not in n}
    save_file(partly, tmp_path / "partly.safetensors")
    assert "IFT is not complete" in refused(stage_1(), tmp_path / "partly.safetensors")

    no_vision = {n: t for n, t in stage_1().checkpoint_state().items() if not n.startswith("visual_encoder.")}
    save_file(no_vision, tmp_path / "no_vision.safetensors")
    assert "set model.vit_weights" in refused(stage_1(), tmp_path / "no_vision.safetensors")

    (tmp_path / "text.pth").write_text("not a checkpoint")
    assert "text.pth" in refused(stage_1(), tmp_path / "text.pth")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "partly.safetensors").read_bytes()[:1000])
    assert "not a readable checkpoint" in refused(stage_1(), tmp_path / "cut.safetensors")
    assert "no such file" in refused(stage_1(), tmp_path / "absent.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    assert "holds no tensors" in refused(stage_1(), tmp_path / "empty.pth")


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("open('/tmp/bita_was_here', 'w').close()",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": Malicious()}, tmp_path / "evil.pth")
    Path("/tmp/bita_was_here").unlink(missing_ok=True)
    assert "could run code" in refused(stage_1(), tmp_path / "evil.pth")
    assert not Path("/tmp/bita_was_here").exists()


def test_a_frozen_random_encoder_is_an_error() -> None:
    with pytest.raises(UserError, match="vit_weights"):
        build_model(small())


def test_a_sharded_folder_without_more_is_a_checkpoint(tmp_path: Path) -> None:
    first = stage_1()
    save_torch_state_dict(first.checkpoint_state(), tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        second = build_model(small(init_from=str(path)))
        assert equal(first, second)


def test_one_shard_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """Four shards of 40 MB are read through and never take 80 MB: the one before is let go of."""
    shard = 40_000_000
    state = {str(index): torch.ones(shard // 4) for index in range(4)}
    save_torch_state_dict(state, tmp_path, max_shard_size=shard)
    del state

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    file = WeightFile(tmp_path)
    before, peak = resident(), 0
    for tensor in file.values():
        assert tensor.sum() == shard // 4
        peak = max(peak, resident() - before)
    assert shard / 2 < peak < 2 * shard
