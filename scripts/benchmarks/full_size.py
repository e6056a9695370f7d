"""Run the full-size models with random weights, and measure them: memory, time, share of the device's arithmetic.

    python scripts/benchmarks/full_size.py cpu --markdown benchmarks/full_size.md    # one caption, bf16, about 7 GB
    python scripts/benchmarks/full_size.py gpu --markdown benchmarks/full_size.md    # all stages, captioning

`cpu` captions one image: ViT-L/14 (21 blocks), IFT-base, OPT-2.7B, the large parts created in bf16. `gpu` trains each
stage at its published batch size on one repeated batch, whose loss must fall, captions with 5 beams, and does the same
with transformers' BLIP-2 of the same sizes. Sizes come from configs/; no weights or tokenizers are read. `--tiny` goes
through all of it in small, on any device.

Operations are counted (torch's FlopCounterMode: matrix products, convolutions and attention, forward and backward as
they are run; Fourier transforms are not counted), so MFU = operations a step / step time / the device's bf16 peak.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import (
    BF16_PEAK,
    HEADER,
    WORDS,
    Row,
    a_batch,
    free,
    peak_of_process,
    timed_captions,
    timed_steps,
    write_section,
)

from bita.batch import Batch
from bita.build import build_model
from bita.config.load import load_config
from bita.errors import UserError, command_line, program
from bita.models.base import BitaModel
from bita.models.bita_lm import BitaLM
from bita.models.language.generation import GenerationSettings
from bita.models.language.tokenizers import load_tokenizer
from bita.prepare.tokenizers import make_bert, make_opt

TINY = (
    "model.vit_args={embed_dim: 32, num_heads: 2, patch_size: 14}",
    "model.vit_depth=2",
    "model.image_size=28",
    "model.bridge_size={hidden_size: 32, layers: 2, heads: 2, intermediate_size: 64}",
    "model.num_query_token=4",
    "model.text_vocab_size=600",
)
TINY_LM = (
    "model.opt_config={hidden_size: 32, word_embed_proj_dim: 32, num_hidden_layers: 2, num_attention_heads: 2, "
    "ffn_dim: 64, vocab_size: 600, max_position_embeddings: 96}",
)


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("part", choices=("cpu", "gpu"))
    parser.add_argument("--tiny", action="store_true", help="small sizes, on any device")
    parser.add_argument("--steps", type=int, default=20, help="steps measured, after 3 that are not")
    parser.add_argument("--markdown", type=Path, help="write the part's section of this file")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    cuda = torch.cuda.is_available()
    if args.part == "gpu" and not cuda and not args.tiny:
        raise UserError("gpu: this machine has no CUDA device; --tiny goes through it on a CPU")
    with tempfile.TemporaryDirectory() as scratch:
        tokenizers = Path(scratch)
        make_bert([WORDS] * 4, tokenizers / "bert", 300)
        make_opt([WORDS] * 4, tokenizers / "opt", 300)
        if args.part == "cpu":
            text = measure_cpu(tokenizers, args.tiny)
        else:
            device = torch.device("cuda" if cuda else "cpu")
            text = measure_gpu(tokenizers, device, args.tiny, args.steps)
    command = shlex.join(
        ["python", "scripts/benchmarks/full_size.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    section = f"`{command}`, torch {torch.__version__}, Python {platform.python_version()}\n\n{text}"
    print(section)
    if args.markdown is not None:
        write_section(args.markdown, args.part.upper(), section)
    return 0


def build(project: str, tokenizers: Path, device: torch.device, tiny: bool, *options: str) -> BitaModel:
    """The model of a shipped project file, with random weights, on a device; frozen parts in bf16 from the start."""
    stage_1 = "stage1" in project
    small = [*TINY, *(() if stage_1 else TINY_LM)] if tiny else []
    fixed = ["model.init_from=null", "model.vit_precision=bf16", "model.lm_precision=bf16"]
    cfg = load_config(f"configs/projects/bita/{project}.yaml", [*fixed, *small, *options], need_files=False)
    with torch.device(device):
        model = build_model(cfg.model, load_weights=False)
    kind = "bert" if stage_1 else "opt"
    tokenizer = load_tokenizer("tokenizer", str(tokenizers / kind), True, dec=stage_1)
    model.tokenizer = tokenizer  # type: ignore[assignment]
    return model.place(device)


def side(model: BitaModel) -> int:
    """Height and width of its images."""
    return model.cfg.image_size or 224


# CPU


def measure_cpu(tokenizers: Path, tiny: bool) -> str:
    """Caption one image; peak memory of this process, parts, and times."""
    device = torch.device("cpu")
    before = peak_of_process()
    start = time.perf_counter()
    model = build("train/caption_ft", tokenizers, device, tiny).eval()
    built = time.perf_counter()
    assert isinstance(model, BitaLM)
    images = a_batch(1, side(model), device)["image"]
    (captions,) = model.generate_ids(images, GenerationSettings())
    done = time.perf_counter()
    parts = {
        name: sum(p.numel() * p.element_size() for p in part.parameters())
        for name, part in (
            ("vision", model.visual_encoder),
            ("bridge", model.bridge),
            ("language model", model.opt_model),
        )
    }
    held = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
    found = {
        "peak memory of the process, GiB": f"{peak_of_process() / 2**30:.2f}",
        "the same before building": f"{before / 2**30:.2f}",
        "weights, GiB": held,
        "building, s": f"{built - start:.0f}",
        "captioning, s": f"{done - built:.0f}",
        "new tokens": str(len(captions[0])),
    }
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads"
    rows = [" | ".join(found), " | ".join("---" for _ in found), " | ".join(found.values())]
    return f"{machine}; random weights, one image, 5 beams.\n\n" + "".join(f"| {row} |\n" for row in rows)


# GPU


def measure_gpu(tokenizers: Path, device: torch.device, tiny: bool, steps: int) -> str:
    """Measure every stage with both bridges, then BLIP-2 of transformers; one model in memory at a time."""
    sizes = (
        {"stage 1": 6, "stage 2": 4, "fine-tuning": 4, "captioning": 2}
        if tiny
        else {
            "stage 1": 96,
            "stage 2": 48,
            "fine-tuning": 48,
            "captioning": 16,
        }
    )
    projects = {
        "stage 1": "train/pretrain_stage1",
        "stage 2": "train/pretrain_stage2",
        "fine-tuning": "train/caption_ft",
        "captioning": "train/caption_ft",
    }
    rows = []
    for bridge, name in (("ift", "IFT"), ("qformer", "Q-Former")):
        for what, project in projects.items():
            model = build(project, tokenizers, device, tiny, f"model.bridge={bridge}")
            batch = a_batch(sizes[what], side(model), device, model.cfg.prompt)
            if what == "captioning":
                rows.append(captioning(name, model.eval(), batch, device))
            else:
                rows.append(training(what, name, model.train(), batch, steps, device))
            del model
            free(device)
    rows += blip2_rows(tokenizers, device, tiny, steps, sizes)
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    peak = next((rate for part, rate in BF16_PEAK.items() if part in gpu), None)
    lines = [HEADER, *(row.cells(peak) for row in rows)]
    assumed = "" if peak is None else f", {peak / 1e12:.0f} TFLOP/s in bf16 assumed for the MFU"
    return (
        f"{gpu}{assumed}; random weights; loss: the repeated batch's first 3 steps → last 3.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def training(what: str, name: str, model: BitaModel, batch: Batch, steps: int, device: torch.device) -> Row:
    """Steps of forward, backward and AdamW on one batch."""
    return timed_steps(what, name, model, lambda: model(batch)["loss"], len(batch["text"]), steps, device)


def captioning(name: str, model: BitaModel, batch: Batch, device: torch.device) -> Row:
    """Captions of a batch with 5 beams, 21 new tokens at most."""
    assert isinstance(model, BitaLM)
    model.requires_grad_(
        False
    )  # the counter of operations cannot follow trained weights where no gradient is kept
    settings = GenerationSettings()
    return timed_captions(
        name, lambda: model.generate_ids(batch["image"], settings), len(batch["text"]), device
    )


# transformers' BLIP-2


def blip2_rows(
    tokenizers: Path, device: torch.device, tiny: bool, steps: int, sizes: dict[str, int]
) -> list[Row]:
    """Stage 2 and captioning of BLIP-2 as transformers has it: same depth, widths, vocabulary, precision, optimizer."""
    ours = build(
        "train/pretrain_stage2",
        tokenizers,
        torch.device("meta") if not tiny else device,
        tiny,
        "model.bridge=qformer",
    )
    assert isinstance(ours, BitaLM)
    model, image_token = blip2_like(ours, device)
    name, queries = "transformers' BLIP-2", ours.cfg.num_query_token
    batch = a_batch(sizes["stage 2"], side(ours), device)
    ids, labels = ours.tokenize(batch["text"])
    ids = torch.cat([torch.full((len(ids), queries), image_token), ids], dim=1).to(device)
    labels = torch.cat([torch.full((len(labels), queries), -100), labels], dim=1).to(device)
    model.train()
    model.vision_model.eval()
    model.language_model.eval()
    rows = [
        timed_steps(
            "stage 2",
            name,
            model,
            lambda: model(pixel_values=batch["image"], input_ids=ids, labels=labels).loss,
            len(ids),
            steps,
            device,
        )
    ]
    model.eval().requires_grad_(False)
    images = a_batch(sizes["captioning"], side(ours), device)["image"]
    search = {"num_beams": 5, "max_new_tokens": 21, "min_new_tokens": 4, "do_sample": False}
    start = ids[: len(images), : queries + 1]
    rows.append(
        timed_captions(
            name, lambda: model.generate(pixel_values=images, input_ids=start, **search), len(images), device
        )
    )
    return rows


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


if __name__ == "__main__":
    sys.exit(main())
