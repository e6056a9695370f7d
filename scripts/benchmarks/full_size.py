"""Run the full-size captioning model with random weights on a CPU: one image, in bf16, in about 7 GB.

    python scripts/benchmarks/full_size.py --markdown benchmarks/full_size.md

ViT-L/14 (21 blocks), IFT-base, OPT-2.7B, the large parts created in bf16. Sizes come from configs/; no weights or
tokenizers are read. `--tiny` goes through it in small. What needs a GPU: scripts/benchmarks/gpu_check.sh.
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

import torch
from measuring import (
    WORDS,
    a_batch,
    peak_of_process,
    write_section,
)

from bita.build import build_model
from bita.commands import command_line, program
from bita.config.load import load_config
from bita.config.schema import Config
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
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    parser.add_argument("--markdown", type=Path, help="write the section of this file")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        text = measure_cpu(make_tokenizers(Path(scratch)), args.tiny)
    command = shlex.join(
        ["python", "scripts/benchmarks/full_size.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    section = f"`{command}`, torch {torch.__version__}, Python {platform.python_version()}\n\n{text}"
    print(section)
    if args.markdown is not None:
        write_section(args.markdown, "CPU", section)
    return 0


def make_tokenizers(folder: Path) -> Path:
    """Make small tokenizers below a folder; the folder."""
    make_bert([WORDS] * 4, folder / "bert", 300)
    make_opt([WORDS] * 4, folder / "opt", 300)
    return folder


def build(
    project: str, tokenizers: Path, device: torch.device, tiny: bool, *options: str
) -> tuple[Config, BitaModel]:
    """Configuration and model of a shipped project file, on a device; frozen parts in bf16 from the start."""
    stage_1 = "stage1" in project
    small = [*TINY, *(() if stage_1 else TINY_LM)] if tiny else []
    fixed = ["model.init_from=null", "model.vit_precision=bf16", "model.lm_precision=bf16"]
    if stage_1:
        fixed.pop()
    cfg = load_config(f"configs/projects/bita/{project}.yaml", [*fixed, *small, *options], need_files=False)
    with torch.device(device):
        model = build_model(cfg.model, load_weights=False)
    kind = "bert" if stage_1 else "opt"
    tokenizer = load_tokenizer("tokenizer", str(tokenizers / kind), True, dec=stage_1)
    model.tokenizer = tokenizer  # type: ignore[assignment]
    return cfg, model.place(device)


def side(model: BitaModel) -> int:
    """Height and width of its images."""
    return model.cfg.image_size or 224


# CPU


def measure_cpu(tokenizers: Path, tiny: bool) -> str:
    """Caption one image; peak memory of this process, parts, and times."""
    device = torch.device("cpu")
    before = peak_of_process()
    start = time.perf_counter()
    _, model = build("train/caption_ft", tokenizers, device, tiny)
    model.eval()
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


if __name__ == "__main__":
    sys.exit(main())
