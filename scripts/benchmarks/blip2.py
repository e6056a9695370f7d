"""transformers' BLIP-2 with the sizes of one of our models, and its steps and captions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from full_size import side
from torch import Tensor

from bita.batch import Batch
from bita.config.run import RunConfig
from bita.models.bita_lm import BitaLM
from bita.precision import autocast
from bita.runners.optim import build_optimizer

SEARCH = {"num_beams": 5, "max_new_tokens": 21, "min_new_tokens": 4, "do_sample": False}


def blip2_like(ours: BitaLM, device: torch.device) -> tuple[Any, int]:
    """Return a random BLIP-2 of transformers with our sizes, frozen as ours is, and the id of its image token."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerConfig, Blip2VisionConfig

    trunk: Any = ours.visual_encoder.trunk
    size, language = ours.cfg.bridge_size, ours.opt_model.config
    image_token = language.vocab_size - 1
    language.pad_token_id = 1
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=trunk.embed_dim,
            intermediate_size=trunk.blocks[0].mlp.fc1.out_features,
            num_hidden_layers=len(trunk.blocks),
            num_attention_heads=trunk.blocks[0].attn.num_heads,
            image_size=side(ours),
            patch_size=trunk.patch_embed.patch_size[0],
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
            initializer_range=0.02,
        ),
        qformer_config=Blip2QFormerConfig(
            hidden_size=size.hidden_size,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=size.intermediate_size,
            encoder_hidden_size=trunk.embed_dim,
            cross_attention_frequency=2,
        ),
        text_config=language,
        num_query_tokens=ours.cfg.num_query_token,
        image_token_index=image_token,
    )
    with torch.device(device):
        model = Blip2ForConditionalGeneration(config)
    for part in (model.vision_model, model.language_model):
        part.requires_grad_(False)
        if device.type == "cuda":  # without autocast it takes one precision only
            part.to(torch.bfloat16)
    return model.to(device), image_token


def training_step(
    model: Any, image_token: int, ours: BitaLM, batch: Batch, run: RunConfig
) -> Callable[[], Tensor]:
    """Return what does a whole step on a batch, with our precision and our optimizer, and gives the loss."""
    device = batch["image"].device
    ids, labels = with_queries(ours, image_token, batch["text"], device)
    model.train()
    model.vision_model.eval()
    model.language_model.eval()
    optimizer = build_optimizer(model, run)

    def step() -> Tensor:
        with autocast(device):
            loss: Tensor = model(pixel_values=batch["image"], input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def writing(model: Any, image_token: int, ours: BitaLM, images: Tensor) -> Callable[[], Any]:
    """Return what captions a batch of images, with the prompt that ours has."""
    ids, _ = with_queries(ours, image_token, [ours.cfg.prompt] * len(images), images.device)
    ids = ids[:, :-1]  # without what ends a caption
    model.eval().requires_grad_(False)
    return lambda: model.generate(pixel_values=images, input_ids=ids, **SEARCH).tolist()


def with_queries(
    ours: BitaLM, image_token: int, texts: list[str], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids and labels with a place for each query token in front."""
    ids, labels = ours.tokenize(texts)
    queries = ours.cfg.num_query_token
    ids = torch.cat([torch.full((len(ids), queries), image_token), ids], dim=1)
    labels = torch.cat([torch.full((len(labels), queries), -100), labels], dim=1)
    return ids.to(device), labels.to(device)
