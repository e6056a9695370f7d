"""Rows of benchmark.py about arithmetic alone: the contrastive loss, packed captions, memory of an encoder."""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from turns import Row, compare, row, same_values

from bita.build import build_model
from bita.config.load import load_config
from bita.machine import keep_memory
from bita.models.bita_lm import BitaLM
from bita.models.contrast import similarity
from bita.models.language.decoder import IGNORED

TEMPERATURE, SMOOTHING = 0.07, 0.1
CAPTIONS = 5
LENGTHS = range(10, 21)
"""Tokens of a caption, evenly: 15 in the mean."""


# Contrastive loss


def contrast(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """Loss and gradient of 96 pairs against the features of four processes, as one product and as broadcast ones."""
    local, processes, queries, width = (6, 2, 4, 16) if args.small else (96, 4, 32, 256)
    torch.manual_seed(0)
    images, texts = (
        F.normalize(torch.randn(*shape), dim=-1) for shape in ((local, queries, width), (local, width))
    )
    others = (
        F.normalize(torch.randn((processes - 1) * local, queries, width), dim=-1),
        F.normalize(torch.randn((processes - 1) * local, width), dim=-1),
    )
    all_images, all_texts = torch.cat([images, others[0]]), torch.cat([texts, others[1]])
    targets = torch.arange(local)

    def product() -> tuple[Tensor, Tensor]:
        return similarity(images, all_texts), similarity(all_images, texts).T

    def broadcast() -> tuple[Tensor, Tensor]:
        to_text = torch.matmul(images[:, None], all_texts[:, :, None]).squeeze(-1).amax(dim=-1)
        to_image = torch.matmul(texts[:, None, None], all_images.mT).squeeze(-2).amax(dim=-1)
        return to_text, to_image

    def step(form: functools.partial[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        images.grad = texts.grad = None
        scores = [found / TEMPERATURE for found in form()]
        loss = sum(F.cross_entropy(found, targets, label_smoothing=SMOOTHING) for found in scores) / 2
        assert isinstance(loss, Tensor)
        loss.backward()
        assert images.grad is not None
        assert texts.grad is not None
        return loss, torch.cat([images.grad.flatten(), texts.grad.flatten()])

    images.requires_grad_()
    texts.requires_grad_()
    sides = [functools.partial(step, functools.partial(form)) for form in (product, broadcast)]
    same = same_step(sides[0](), sides[1]())
    what = f"contrast, batch {local} of {processes} processes"
    return compare(
        what,
        sides,
        against="broadcast form",
        unit="step",
        units=1,
        rounds=args.rounds,
        same=same,
        wanted=25,
    )


def same_step(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> str:
    """Say that two sides' loss and gradient are the same, in float32."""
    names = ("loss", "gradient")
    return ", ".join(same_values(*three, 1e-4) for three in zip(names, ours, theirs, strict=True))


# Packed captions


def grouped(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """Loss and gradient of a stage-2 step through a frozen decoder: five captions in one sequence, and five rows."""
    images, queries, width, layers = (2, 4, 32, 1) if args.small else (8, 32, 512, 8)
    model = small_captioner(width, layers, 2560)
    ids = torch.full((images * CAPTIONS, max(LENGTHS)), 1)
    generator = torch.Generator().manual_seed(0)
    labels = torch.full_like(ids, IGNORED)
    for number, (words, label) in enumerate(zip(ids, labels, strict=True)):
        length = LENGTHS[number % len(LENGTHS)]
        words[:length] = torch.randint(4, 2560, (length,), generator=generator)
        label[:length] = words[:length]
    read = torch.randn(images, queries, model.cfg.bridge_size.hidden_size, generator=generator)

    def step(packs: bool) -> tuple[Tensor, Tensor]:
        model.packs = packs
        model.zero_grad(set_to_none=True)
        loss = model.caption_loss(model.opt_proj(read), ids, labels)
        loss.backward()
        gradient = model.opt_proj.weight.grad
        assert gradient is not None
        return loss, gradient

    sides = [functools.partial(step, packs) for packs in (True, False)]
    same = same_step(sides[0](), sides[1]())
    return compare(
        f"grouped, {images} images of {CAPTIONS} captions",
        sides,
        against="separate rows",
        unit="caption",
        units=len(ids),
        rounds=args.rounds,
        same=same,
        wanted=2.4,
    )


def small_captioner(width: int, layers: int, vocabulary: int) -> BitaLM:
    """A captioning model with random weights whose decoder, an OPT, is frozen; all before it is tiny."""
    sizes = {
        "hidden_size": width,
        "word_embed_proj_dim": width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
        "ffn_dim": 4 * width,
        "vocab_size": vocabulary,
        "max_position_embeddings": 256,
    }
    text = ", ".join(f"{name}: {size}" for name, size in sizes.items())
    cfg = load_config(
        "configs/projects/bita/train/pretrain_stage2_tiny.yaml",
        [
            "model.init_from=null",
            "model.freeze_lm=true",
            "model.opt_tokenizer=null",
            f"model.opt_config={{{text}}}",
        ],
        need_files=False,
    )
    torch.manual_seed(0)
    model = build_model(cfg.model, load_weights=False)
    assert isinstance(model, BitaLM)
    return model.train()


# Memory


def encoder(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """EfficientNet-Lite0's forward pass as it was: freed memory goes to the kernel, channels lie before places."""
    batch, side, repeats = (2, 64, 1) if args.small else (32, 224, 3)
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        del os.environ[name]  # the processes that follow inherit it
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh) as kept, ProcessPoolExecutor(1, fresh) as plain:

        def run(pool: ProcessPoolExecutor) -> tuple[float, Tensor]:
            return pool.submit(forward, pool is kept, batch, side, repeats, torch.get_num_threads()).result()

        same = same_values("features", run(kept)[1], run(plain)[1], 1e-5)
        times = [(run(kept)[0] / repeats, run(plain)[0] / repeats) for _ in range(args.rounds)]
    return [
        row(
            f"encoder, EfficientNet-Lite0, batch {batch}, {side} px",
            [kept_ / batch for kept_, _ in times],
            [plain_ / batch for _, plain_ in times],
            against="channels first, memory given back",
            unit="image",
            same=same,
            wanted=2.5,
        )
    ]


def forward(keeps: bool, batch: int, side: int, repeats: int, threads: int) -> tuple[float, Tensor]:
    """Return the seconds of some passes, and the mean of the features; as now, keeping memory, or as before."""
    torch.set_num_threads(threads)
    network = _efficientnet(keeps)
    images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))
    clock = time.process_time if threads == 1 else time.perf_counter
    with torch.inference_mode():
        start = clock()
        for _ in range(repeats):
            found: Tensor = network(images)
        return clock() - start, found.mean(dim=(0, 1)).clone()


@functools.cache
def _efficientnet(keeps: bool) -> torch.nn.Module:
    from bita.config.parts import FormerConfig
    from bita.registry import encoders

    if keeps:
        keep_memory()
    torch.manual_seed(0)
    cfg = FormerConfig(vit_model="timm:tf_efficientnet_lite0", vit_args={})
    network: torch.nn.Module = encoders.get(cfg.vit_model).from_config(cfg).eval()
    if not keeps:
        for weight in network.parameters():
            weight.data = weight.data.clone(memory_format=torch.contiguous_format)
    return network
