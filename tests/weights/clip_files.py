"""Small vision weights in the layouts of the wild, written down apart from the package's tables."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import Tensor
from transformers import CLIPVisionModel

WIDTH, HEADS, BLOCKS, PATCH, SIZE = 32, 4, 4, 14, 56
State = dict[str, Tensor]
EVA = {"vit_model": "eva_clip_g", "vit_args": {"embed_dim": WIDTH, "num_heads": 4}}


def by_hand(clip: CLIPVisionModel) -> State:
    """OpenAI's names, written down here apart from the table in the package."""
    theirs = clip.state_dict()
    state = {
        "class_embedding": theirs["embeddings.class_embedding"],
        "positional_embedding": theirs["embeddings.position_embedding.weight"],
        "conv1.weight": theirs["embeddings.patch_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        state[f"ln_pre.{kind}"] = theirs[f"pre_layrnorm.{kind}"]
        state[f"ln_post.{kind}"] = theirs[f"post_layernorm.{kind}"]
        for n in range(BLOCKS):
            of, to = f"encoder.layers.{n}.", f"transformer.resblocks.{n}."
            heads = [theirs[f"{of}self_attn.{x}_proj.{kind}"] for x in "qkv"]
            state[f"{to}attn.in_proj_{kind}"] = torch.cat(heads)
            state[f"{to}attn.out_proj.{kind}"] = theirs[f"{of}self_attn.out_proj.{kind}"]
            state[f"{to}ln_1.{kind}"] = theirs[f"{of}layer_norm1.{kind}"]
            state[f"{to}ln_2.{kind}"] = theirs[f"{of}layer_norm2.{kind}"]
            state[f"{to}mlp.c_fc.{kind}"] = theirs[f"{of}mlp.fc1.{kind}"]
            state[f"{to}mlp.c_proj.{kind}"] = theirs[f"{of}mlp.fc2.{kind}"]
    return state


def openai(clip: CLIPVisionModel) -> State:
    text = {
        "token_embedding.weight": torch.zeros(3, 2),
        "transformer.resblocks.0.ln_1.weight": torch.zeros(2),
    }
    vision = {f"visual.{name}": tensor for name, tensor in by_hand(clip).items()}
    return vision | {"visual.proj": torch.zeros(WIDTH, 8), "logit_scale": torch.tensor(1.0)} | text


def as_timm(clip: CLIPVisionModel) -> State:
    """timm's own conversion of OpenAI's names."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    trunk = timm.create_model(
        "vit_large_patch14_clip_quickgelu_224", num_classes=0, img_size=SIZE, depth=BLOCKS, embed_dim=WIDTH
    )
    return {
        name: tensor
        for name, tensor in checkpoint_filter_fn(openai(clip), trunk).items()
        if "head" not in name
    }


def saved(content: object, folder: Path) -> Path:
    torch.save(content, folder / "file.pth")
    return folder / "file.pth"
