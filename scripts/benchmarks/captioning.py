"""Row of benchmark.py: how fast captions are written after a prefix, against two other ways and the products alone.

A small OPT with random weights writes after random prefixes with beams, always to the last token, so that all sides do
the same work: the fast way, the reference (`run.speed`), transformers' `generate`, and the floor: the fast way's linear
layers, each on as many rows as often as there, and nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from turns import Row, compare, same_lists

from bita.models.language.decoder import fresh_language_model
from bita.models.language.generation import GenerationSettings, generate
from bita.models.language.language_model import TransformersDecoder
from bita.models.products import fast_products

STOP = 3
"""Never written: `min_len` is `max_len`."""
OTHERS = ("reference", "transformers", "floor")


@dataclass(frozen=True)
class Sizes:
    """Of the language model, and of what it reads and writes; `wanted`: batch → the ratio to transformers."""

    width: int = 512
    layers: int = 8
    vocabulary: int = 2560
    prefix: int = 34
    tokens: int = 21
    beams: int = 5
    wanted: tuple[tuple[int, float], ...] = ((4, 1.8), (16, 2.2), (64, 3.0))
    floor: float = 0.6


SMALL = Sizes(width=64, layers=1, vocabulary=64, prefix=3, tokens=4, wanted=((1, 0.0), (3, 0.0)), floor=0.0)


def captioning(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """Every batch against the others; the floor's ratio is its share of our time."""
    sizes = SMALL if args.small else Sizes()
    torch.manual_seed(0)
    decoder = TransformersDecoder(language_model(sizes))
    rows = []
    with torch.inference_mode():
        for batch, wanted in sizes.wanted:
            sides = ways(decoder, batch, sizes)
            first, *others = (side() for side in sides[:3])
            for other in others:
                same = same_lists("tokens", first, other)
            rows += compare(
                f"captioning, batch {batch}",
                sides,
                against=OTHERS,
                unit="caption",
                units=batch,
                rounds=args.rounds,
                same=same,
                wanted=(None, wanted, sizes.floor),
            )
    return rows


def language_model(sizes: Sizes) -> Any:
    """An OPT with random weights, twice as large as fresh ones, so that it does not say the same of every prefix."""
    keys = {
        "hidden_size": sizes.width,
        "word_embed_proj_dim": sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": max(1, sizes.width // 64),
        "ffn_dim": 4 * sizes.width,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": sizes.prefix + sizes.tokens + 2,
    }
    model = fresh_language_model(keys).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def ways(decoder: TransformersDecoder, batch: int, sizes: Sizes) -> list[Callable[[], Any]]:
    """Ours, then the others: each writes a batch of captions, or does the floor's work."""
    inputs = torch.randn(batch, sizes.prefix, sizes.width)

    def ours(speed: Any) -> list[list[int]]:
        longest = sizes.tokens + 1
        settings = GenerationSettings(num_beams=sizes.beams, max_len=longest, min_len=longest, speed=speed)
        with fast_products(speed == "fast"):
            written = generate(decoder.search(inputs, settings), batch, STOP, settings)
        return [captions[0] for captions in written]

    def theirs() -> list[list[int]]:
        found: Tensor = decoder.network.generate(
            inputs_embeds=inputs,
            num_beams=sizes.beams,
            max_new_tokens=sizes.tokens,
            min_new_tokens=sizes.tokens,
            do_sample=False,
            eos_token_id=STOP,
            pad_token_id=1,
        )
        tokens: list[list[int]] = found.tolist()
        return tokens

    fast = partial(ours, "fast")
    return [fast, partial(ours, "reference"), theirs, products_of(decoder.network, fast)]


def products_of(model: nn.Module, run: Callable[[], Any]) -> Callable[[], None]:
    """What does the matrix products of a model's linear layers in a run again, on as many rows, and nothing else."""
    calls: list[tuple[nn.Linear, int]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        calls.append((layer, inputs[0].numel() // layer.in_features))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Linear)]
    run()
    for hook in hooks:
        hook.remove()
    rows = {(rows, layer.in_features) for layer, rows in calls}
    noise = {shape: torch.randn(shape) for shape in rows}

    def again() -> None:
        with fast_products():
            for layer, count in calls:
                nn.functional.linear(noise[count, layer.in_features], layer.weight, layer.bias)

    return again
