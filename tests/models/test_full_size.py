"""The full-size models build from their shipped configurations; their sizes are counted part by part."""

from __future__ import annotations

import pytest
import torch

from bita.build import build_model
from bita.config.load import load_config
from bita.models.base import BitaModel

LINEAR_768 = 768 * 768 + 768
FFN = 768 * 3072 + 3072 + 3072 * 768 + 768 + 2 * 768
CROSS = (
    2 * LINEAR_768 + 2 * (1024 * 768 + 768) + 2 * 768
)  # query and output, key and value of the image, norm
VISION = (
    3 * 14 * 14 * 1024  # patches
    + 1024  # class token
    + 257 * 1024  # positions
    + 2 * 1024  # ln_pre
    + 21 * (2 * 2 * 1024 + 4 * (1024 * 1024 + 1024) + 2 * 4 * 1024 * 1024 + 4096 + 1024)
)
TEXT_EMBEDDINGS = 30523 * 768 + 512 * 768
QUERY_SIDE = 2 * 768 + 12 * (
    2 * 768 + CROSS + FFN
)  # embedding norm; Fourier norm, cross-attention, feed-forward
STAGE_1 = {
    "visual_encoder": VISION,
    "ln_vision": 2048,
    "query_tokens": 32 * 768,
    "ift": QUERY_SIDE + TEXT_EMBEDDINGS + 12 * FFN,
    "vision_proj": 768 * 256 + 256,
    "text_proj": 768 * 256 + 256,
    "temp": 1,
    "itm_head": 768 * 2 + 2,
    "mlm_head": LINEAR_768 + 2 * 768 + 30523,
}
STAGE_2 = {
    "visual_encoder": VISION,
    "ln_vision": 2048,
    "query_tokens": 32 * 768,
    "ift": QUERY_SIDE,
    "opt_proj": 768 * 2560 + 2560,
    "opt_model": 2_651_596_800,  # OPT-2.7B as its owner counts it
}
SELF_ATTENTION = 4 * LINEAR_768 + 2 * 768
QFORMER_QUERY_SIDE = 2 * 768 + 12 * (SELF_ATTENTION + FFN) + 6 * CROSS  # every second layer reads the image
QFORMER_STAGE_1 = {n: v for n, v in STAGE_1.items() if n != "ift"} | {
    "qformer": QFORMER_QUERY_SIDE + TEXT_EMBEDDINGS + 12 * FFN
}
QFORMER_STAGE_2 = {n: v for n, v in STAGE_2.items() if n != "ift"} | {"qformer": QFORMER_QUERY_SIDE}
STAGE_2_LARGER = STAGE_2 | {"opt_proj": 768 * 4096 + 4096, "opt_model": 6_658_473_984}  # OPT-6.7B, likewise


def build(project: str, *options: str) -> BitaModel:
    cfg = load_config(f"configs/projects/bita/{project}.yaml", ["model.init_from=null", *options])
    with torch.device("meta"):
        return build_model(cfg.model, load_weights=False)


def counts(model: BitaModel) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        found[part] = found.get(part, 0) + parameter.numel()
    return found


HEADS_WITHOUT_LOSS = {"itm_head", "mlm_head"}


@pytest.mark.parametrize(
    ("project", "expected", "idle"),
    [
        ("train/pretrain_stage1", STAGE_1, HEADS_WITHOUT_LOSS),
        ("train/pretrain_stage2", STAGE_2, set()),
        ("train/caption_ft", STAGE_2, set()),
        ("train/pretrain_stage1_qformer", QFORMER_STAGE_1, set()),
        ("train/pretrain_stage2_qformer", QFORMER_STAGE_2, set()),
        ("train/caption_ft_qformer", QFORMER_STAGE_2, set()),
        ("eval/caption_eval_qformer", QFORMER_STAGE_2, set()),
        ("train/pretrain_stage2_opt6.7b", STAGE_2_LARGER, set()),
    ],
)
def test_full_size_models_have_the_published_sizes(
    project: str, expected: dict[str, int], idle: set[str]
) -> None:
    model = build(project, "run.evaluate=false", "run.train_splits=[train]")
    assert counts(model) == expected
    trained = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == set(expected) - {"visual_encoder", "opt_model"} - idle
    assert all(p.device.type == "meta" for p in model.parameters())


def test_the_bridge_is_one_key() -> None:
    model = build("train/pretrain_stage1", "model.bridge=qformer")
    assert counts(model) == QFORMER_STAGE_1
    assert model.qformer.layers[0].cross is not None
    assert model.qformer.layers[1].cross is None


def test_depth_of_the_vision_encoder_is_a_key() -> None:
    assert len(build("train/pretrain_stage1", "model.vit_depth=23").visual_encoder.trunk.blocks) == 23
    eva = build("train/pretrain_stage1", "model.vit_model=eva_clip_g").visual_encoder
    assert (len(eva.trunk.blocks), eva.width) == (39, 1408)
