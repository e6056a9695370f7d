"""Encoders: sizes other than their own, several layers, timm's networks with what they were pretrained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionModel

from bita.errors import ConfigError
from bita.models.vision import image_input
from bita.weights.layouts import published
from bita.weights.load import load_checkpoint, load_vision
from tests.weights.clip_files import BLOCKS, EVA, HEADS, PATCH, WIDTH, openai, saved
from tests.weights.test_weights import small, stage_1


@pytest.mark.parametrize("encoder", [{}, EVA])
@pytest.mark.parametrize("size", [364, 490])
def test_larger_images_work_with_resized_positions(
    encoder: dict[str, object], size: int, tmp_path: Path
) -> None:
    """From 224 to 364 and 490: the grid of positions grows, as `interpolate` says, corners kept for CLIP only."""
    plain = stage_1(**encoder, image_size=224)
    path = saved({"model": published(plain.state_dict())}, tmp_path)
    larger = stage_1(**encoder, image_size=size).eval()
    load_vision(larger, path)
    old, new = (model.state_dict()["visual_encoder.trunk.pos_embed"][0] for model in (plain, larger))
    side = size // PATCH
    grid = old[1:].T.reshape(1, WIDTH, 16, 16)
    wanted = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=not encoder)
    assert torch.equal(new[0], old[0])
    assert torch.allclose(new[1:], wanted.flatten(2)[0].T, atol=1e-6)
    assert larger.visual_encoder(torch.zeros(1, 3, size, size)).shape == (1, 1 + side**2, WIDTH)


def test_timm_positions_are_resized_as_timm_does(tmp_path: Path) -> None:
    name, sizes = "vit_tiny_patch16_224", {"embed_dim": 16, "num_heads": 2, "depth": 1}
    theirs = timm.create_model(name, num_classes=0, **sizes).eval()
    model = stage_1(vit_model=f"timm:{name}", vit_args=sizes, vit_depth=None, image_size=320).eval()
    load_vision(model, saved(theirs.state_dict(), tmp_path))
    theirs.set_input_size(img_size=(320, 320))
    images = torch.randn(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model.visual_encoder(images), theirs.forward_features(images), atol=1e-5)


def test_remote_sensing_clip_loads_into_timms_vit_with_its_norm(
    clip: CLIPVisionModel, images: Tensor, tmp_path: Path
) -> None:
    """RemoteCLIP's and GeoRSCLIP's files are OpenCLIP's: `timm:` keeps the last norm, `clip_L` does not."""
    sizes = {"embed_dim": WIDTH, "num_heads": HEADS, "depth": BLOCKS, "patch_size": PATCH}
    name = "timm:vit_base_patch32_clip_quickgelu_224"
    model = stage_1(vit_model=name, vit_args=sizes, vit_depth=None).eval()
    load_vision(model, saved(openai(clip), tmp_path))
    with torch.no_grad():
        hidden = clip(images, output_hidden_states=True).hidden_states[-1]
        wanted = clip.post_layernorm(hidden)
        assert torch.allclose(model.visual_encoder(images), wanted, atol=1e-5)


def test_several_layers_are_put_side_by_side_or_added(
    clip: CLIPVisionModel, images: Tensor, tmp_path: Path
) -> None:
    path = saved(openai(clip), tmp_path)
    with torch.no_grad():
        hidden = clip(images, output_hidden_states=True).hidden_states
        for merge, wanted in (
            ("concat", torch.cat([hidden[1], hidden[3]], -1)),
            ("sum", hidden[1] + hidden[3]),
        ):
            model = stage_1(vit_depth=4, vit_layers=[1, 3], vit_layers_merge=merge).eval()
            load_vision(model, path)
            got = model.visual_encoder(images)
            assert torch.allclose(got, wanted, atol=1e-5)
            assert model.encode_image(images).shape == wanted.shape  # ln_vision is as wide
            assert len(model.visual_encoder.trunk.blocks) == 3  # later blocks would compute for nothing
        alone, last = stage_1(vit_depth=4, vit_layers=[4]).eval(), stage_1(vit_depth=4).eval()
        for model in (alone, last):
            load_vision(model, path)
        assert torch.equal(alone.visual_encoder(images), last.visual_encoder(images))


@pytest.mark.parametrize(
    ("name", "widths"),
    [("resnet10t", (256, 512)), ("tf_efficientnet_lite0", (112, 320)), ("convnext_atto", (160, 320))],
)
def test_several_stages_are_averaged_to_the_last_ones_grid(name: str, widths: tuple[int, int]) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    changes = {
        "vit_model": f"timm:{name}",
        "vit_depth": None,
        "vit_args": {},
        "image_size": 64,
        "freeze_vit": False,
    }
    fourth, last = (4, 5) if len(timm.create_model(name, num_classes=0).feature_info) == 5 else (3, 4)
    model = stage_1(**changes, vit_layers=[fourth, last]).eval()
    whole = timm.create_model(name, num_classes=0).eval()
    mine = model.visual_encoder.trunk.state_dict()
    whole.load_state_dict(whole.state_dict() | mine)
    assert not any(key.startswith("conv_head") for key in mine)  # what comes after the stages is gone
    with torch.no_grad():
        maps = whole.forward_intermediates(images, indices=[fourth - 1, last - 1], intermediates_only=True)
        places = maps[0].shape[-1] // 2
        halved = maps[0].unflatten(2, (places, 2)).unflatten(4, (places, 2)).mean(dim=(3, 5))
        wanted = torch.cat([halved, maps[1]], dim=1).flatten(2).transpose(1, 2)
        assert model.visual_encoder.width == sum(widths) == wanted.shape[2]
        torch.testing.assert_close(model.visual_encoder(images), wanted, rtol=1e-4, atol=1e-4)
        assert model.encode_image(images).shape == wanted.shape


def test_encoders_bring_their_size_and_normalisation() -> None:
    assert image_input(small(image_size=None)).size == 224
    assert image_input(small(image_size=None)).mean[0] == 0.48145466
    siglip = image_input(small(vit_model="timm:vit_base_patch16_siglip_384", image_size=None))
    assert siglip == (384, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert image_input(small(vit_model="timm:resnet10t", image_size=80)) == (
        80,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    )


def test_processors_take_the_encoders_size_and_normalisation(tmp_path: Path) -> None:
    from bita.config.load import load_config
    from bita.datasets.builders import build_datasets

    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "images/a.png")
    (tmp_path / "train.json").write_text('[{"image": "a.png", "caption": "a red field", "image_id": 1}]')
    (tmp_path / "project.yaml").write_text(
        f"""
model: {{arch: bita_former, model_type: pretrain_vitL, vit_model: "timm:vit_base_patch16_siglip_256"}}
datasets:
  mine:
    build_info:
      annotations: {{train: {{storage: {tmp_path}/train.json}}}}
      images: {{storage: {tmp_path}/images}}
run: {{task: image_text_pretrain}}
"""
    )
    cfg = load_config(tmp_path / "project.yaml")
    pixels = build_datasets(cfg)["train"][0].processors.eval_image(Image.new("RGB", (40, 40), (255, 0, 0)))
    assert pixels.shape == (3, 256, 256)
    assert pixels[:, 0, 0].tolist() == [1.0, -1.0, -1.0]  # (x - 0.5) / 0.5
    cfg = load_config(
        tmp_path / "project.yaml", ["datasets.mine.vis_processor.eval.mean=[0,0,0]", "model.image_size=64"]
    )
    pixels = build_datasets(cfg)["train"][0].processors.eval_image(Image.new("RGB", (40, 40), (255, 0, 0)))
    assert pixels.shape == (3, 64, 64)
    assert pixels[:, 0, 0].tolist() == [2.0, 0.0, 0.0]


def test_layers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"vit_layers: 5 is past the last block, 4"):
        stage_1(vit_depth=4, vit_layers=[1, 5])
    resnet = {"vit_model": "timm:resnet10t", "vit_depth": None, "vit_args": {}}
    with pytest.raises(ConfigError, match=r"vit_layers: 6 is past the last stage, 5$"):
        stage_1(**resnet, vit_layers=[1, 6])
    with pytest.raises(
        ConfigError, match=r"vit_layers_merge: sum of stages of 256, 512 channels; set it to concat"
    ):
        stage_1(**resnet, vit_layers=[4, 5], vit_layers_merge="sum")
    with pytest.raises(ConfigError, match=r"timm has no vit_nothing"):
        stage_1(vit_model="timm:vit_nothing")


def test_a_plain_resnets_own_weights_load_and_its_published_layout_comes_back(tmp_path: Path) -> None:
    """Its first layer is called `conv1`, as CLIP's is."""
    changes = {"vit_model": "timm:resnet10t", "vit_depth": None, "image_size": 64, "freeze_vit": False}
    changes["vit_args"] = {"stem_type": ""}
    model, other = stage_1(**changes), stage_1(**changes)
    theirs = timm.create_model("resnet10t", num_classes=0, stem_type="")
    save_file(theirs.state_dict(), tmp_path / "resnet.safetensors")
    load_vision(model, tmp_path / "resnet.safetensors")
    images = torch.randn(2, 3, 64, 64)
    wanted = theirs.eval().forward_features(images).flatten(2).transpose(1, 2)
    assert torch.allclose(model.eval().visual_encoder(images), wanted, atol=1e-5)
    torch.save({"model": published(model.state_dict())}, tmp_path / "published.pth")
    load_checkpoint(other, tmp_path / "published.pth")
    assert torch.equal(other.eval().visual_encoder(images), model.visual_encoder(images))


def test_layers_of_an_encoder_without_a_class_token_are_its_patches() -> None:
    model = stage_1(
        vit_model="timm:vit_base_patch16_siglip_gap_224",
        vit_depth=2,
        vit_args={},
        image_size=64,
        vit_layers=[1, 2],
    )
    for count in (2, 3):
        assert model.visual_encoder(torch.randn(count, 3, 64, 64)).shape == (
            count,
            16,
            model.visual_encoder.width,
        )
