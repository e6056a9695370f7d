"""Count the arithmetic of the published model, and what an H100 needs at least for a step.

    python scripts/benchmarks/counts.py [--markdown FILE]

Operations are counted by torch's FlopCounterMode on the `meta` device, in the models themselves: forward, a sample.
Fourier transforms are not counted. The floors are operations over a rate, and for captions bytes over a bandwidth,
both as measured on one H100 (a product of 8192 × 8192 matrices in bf16; a copy on the device).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bita.build import build_model
from bita.commands import command_line, program
from bita.config.load import load_config
from bita.errors import UserError
from bita.models.bita_itc import BitaITC
from bita.models.bita_lm import BitaLM

RATE, BANDWIDTH = 798e12, 3.0e12
"""Operations and bytes a second."""
QUERIES, TEXT, CAPTION, CAPTIONS = 32, 32, 15, 5
"""Query tokens; tokens of stage 1's padded text; of a caption in the mean; captions of an image."""
LONGEST, PROMPT = 29, 3
"""Tokens of the longest caption of a batch, to which the others are padded; of the prompt "a photo of"."""
BEAMS, NEW, BATCHES = 5, 21, (16, 64, 256)
EXPECTED = {
    "vision encoder, an image": 141.8e9,
    "IFT, an image": 14.6e9,
    "IFT, a text of 32 tokens": 3.6e9,
    "OPT-2.7B without its head, a token": 5.03e9,
    "output head, a token": 0.257e9,
    "keys and values of a token, bytes": 327_680,
}
"""What each must come to, but for a percent."""
Floors = tuple[float | None, ...]
"""Operations of a step: as published; no padding and caption logits only; an image's captions together; and cached."""


@dataclass(frozen=True)
class Counts:
    """Operations forward, and bytes."""

    vision: float
    image: float
    text: float
    token: float
    head: float
    cache: float
    attention: float
    """Of OPT-2.7B for a token and a place that it attends to."""
    weights: float
    """Bytes of OPT-2.7B in 16 bit, its head included."""


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Count, check, print; the exit code."""
    parser = command_line(__doc__)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write it here")
    args = parser.parse_args(arguments)
    counts = count()
    check(counts)
    text = f"{counted(counts)}\n\n{floors_table(counts)}\n"
    print(text, end="")
    if args.markdown is not None:
        args.markdown.write_text(text, encoding="utf-8")
    return 0


def operations(run: Callable[[], Any]) -> float:
    """Return the operations of a run."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def count() -> Counts:
    """Count the published sizes."""
    stage_1, stage_2 = (model_of(f"pretrain_stage{number}") for number in (1, 2))
    assert isinstance(stage_1, BitaITC)
    assert isinstance(stage_2, BitaLM)
    meta = torch.device("meta")
    images = torch.empty(1, 3, 224, 224, device=meta)
    tokens = torch.empty(1, 257, stage_1.visual_encoder.width, device=meta)
    ids = torch.empty(1, TEXT, dtype=torch.long, device=meta)
    language = stage_2.opt_model
    width = stage_2.decoder.width
    place = torch.empty(1, width, device=meta)
    row = torch.empty(1, 1, width, device=meta)
    sizes = language.config
    alone = {  # a mask that is given is not looked into, which `meta` tensors do not bear
        "attention_mask": torch.empty(1, 1, 1, 1, device=meta),
        "position_ids": torch.empty(1, 1, dtype=torch.long, device=meta),
    }
    return Counts(
        vision=operations(lambda: stage_1.visual_encoder(images)),
        image=operations(lambda: stage_2.query_image(tokens)),
        text=operations(lambda: stage_1.bridge(text_ids=ids)),
        token=operations(lambda: language.base_model(inputs_embeds=row, use_cache=False, **alone)),
        head=operations(lambda: language.get_output_embeddings()(place)),
        cache=2 * 2 * sizes.num_hidden_layers * sizes.hidden_size,
        attention=4 * sizes.num_hidden_layers * sizes.hidden_size,
        weights=2 * sum(p.numel() for p in language.parameters()),
    )


def model_of(project: str) -> torch.nn.Module:
    """A shipped project's model, without memory behind it."""
    options = ["model.init_from=null", "model.lm_precision=bf16"] if project.endswith("2") else []
    cfg = load_config(f"configs/projects/bita/train/{project}.yaml", options, need_files=False)
    with torch.device("meta"):
        return build_model(cfg.model, load_weights=False).eval().requires_grad_(False)


def check(counts: Counts) -> None:
    """Raise UserError where a count is not what is expected of it, a percent off at most."""
    found = values(counts)
    for name, expected in EXPECTED.items():
        if not math.isclose(found[name], expected, rel_tol=0.01):
            raise UserError(f"{name}: counted {found[name]:.5g}, expected {expected:.5g}")


def values(counts: Counts) -> dict[str, float]:
    """Return the counts by the names of `EXPECTED`."""
    found = (counts.vision, counts.image, counts.text, counts.token, counts.head, counts.cache)
    return dict(zip(EXPECTED, found, strict=True))


def counted(counts: Counts) -> str:
    """Return the table of counts."""
    lines = ["| forward, a sample | counted |", "|---|---|"]
    for name, value in values(counts).items():
        lines.append(f"| {name} | {f'{value:,.0f}' if 'bytes' in name else f'{value / 1e9:.3f} GF'} |")
    return "\n".join(lines)


def floors(counts: Counts) -> dict[str, Floors]:
    """Operations of a training step of each stage.

    Gradients through a frozen part cost its forward once more, those of a trained part twice. With its captions
    together an image is read once for five pairs.
    """

    def stage_1(images: float, cached: bool = False) -> float:
        vision = 0.0 if cached else images * counts.vision
        return vision + 3 * (images * counts.image + 96 * counts.text)

    def stage_2(images: float, words: float, heads: float, rows: float, cached: bool = False) -> float:
        vision = 0.0 if cached else images * counts.vision
        places = images * QUERIES + 48 * words
        language = places * (counts.token + places / rows * counts.attention) + 48 * heads * counts.head
        return vision + 3 * images * counts.image + 2 * language

    def steps(prompt: int) -> Floors:
        padded, words, few = LONGEST + prompt, CAPTION + prompt, 48 / CAPTIONS
        return (
            stage_2(48, padded, QUERIES + padded, 48),
            stage_2(48, words, CAPTION, 48),
            stage_2(few, words, CAPTION, few),
            stage_2(few, words, CAPTION, few, cached=True),
        )

    few = 96 / CAPTIONS
    return {
        "stage 1, 96 pairs": (stage_1(96), None, stage_1(few), stage_1(few, cached=True)),
        "stage 2, 48 pairs": steps(0),
        "fine-tuning, 48 pairs": steps(PROMPT),
    }


def captioning_floor(counts: Counts, batch: int) -> float:
    """Least seconds of a batch's captions: encode and read the prefix, then each further token of all beams.

    A token takes as long as its arithmetic or its bytes, whichever is more: weights, keys and values.
    """
    prefix, sequences = QUERIES + 1 + PROMPT, batch * BEAMS
    read = batch * (counts.vision + counts.image + prefix * counts.token)
    arithmetic = sequences * (counts.token + counts.head) / RATE
    seconds = read / RATE
    for said in range(1, NEW):
        held = (batch * prefix + sequences * said) * counts.cache
        seconds += max(arithmetic, (counts.weights + held) / BANDWIDTH)
    return seconds


def floors_table(counts: Counts) -> str:
    """Return the tables of floors."""
    heads = (
        "published work",
        "no padding, caption logits only",
        "an image's captions together",
        "and cached",
    )
    lines = [f"| a step on one H100 | {' | '.join(heads)} |", "|---|---|---|---|---|"]
    for name, steps in floors(counts).items():
        cells = ["–" if one is None else f"{one / 1e12:.1f} TF, {1000 * one / RATE:.1f} ms" for one in steps]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| captioning, 5 beams, batch | captions/s at most |", "|---|---|"]
    lines += [f"| {batch} | {batch / captioning_floor(counts, batch):.0f} |" for batch in BATCHES]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
