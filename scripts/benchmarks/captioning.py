"""Measure how fast captions are written after a prefix, against transformers and against the matrix products alone.

    python scripts/benchmarks/captioning.py --markdown captioning.md

A small OPT with random weights writes after random prefixes with beams, always to the last token, so that all sides do
the same work: the fast way, the reference (`run.speed`), transformers' `generate`, and the floor: the fast way's linear
layers, each on as many rows as often as there, and nothing else. All tokens must be equal first. Then they run in
turn, round by round, in this process; a ratio is the median over the rounds, with its least and highest value. With one
thread (OMP_NUM_THREADS=1) CPU time is counted, so that a busy machine will do.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from bita.errors import UserError, command_line, program
from bita.models.language.decoder import fresh_language_model
from bita.models.language.generation import GenerationSettings, generate
from bita.models.language.language_model import TransformersDecoder

STOP = 3
"""Never written: `min_len` is `max_len`."""
HEADER = "| batch | fast, s | × reference | × transformers | share of the floor |\n|---|---|---|---|---|"


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, report; returns the exit code."""
    parser = command_line(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 16, 64], help="images (%(default)s)")
    parser.add_argument("--width", type=int, default=512, help="of the language model (%(default)s)")
    parser.add_argument("--layers", type=int, default=8, help="of the language model (%(default)s)")
    parser.add_argument("--vocabulary", type=int, default=2560, help="rows of its head (%(default)s)")
    parser.add_argument("--prefix", type=int, default=34, help="positions before the caption (%(default)s)")
    parser.add_argument("--tokens", type=int, default=21, help="new tokens (%(default)s)")
    parser.add_argument("--beams", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds counted (%(default)s)")
    parser.add_argument("--markdown", type=Path, help="also write what is printed to this file")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    decoder = TransformersDecoder(language_model(options))
    with torch.inference_mode():
        rows = [measure(decoder, batch, options) for batch in options.batch]
    text = "\n".join(
        [
            f"Width {options.width}, {options.layers} layers, vocabulary {options.vocabulary}, prefix "
            f"{options.prefix}, {options.tokens} new tokens, {options.beams} beams; {platform.machine()}, "
            f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the end, torch {torch.__version__}, "
            f"transformers {transformers.__version__}, {torch.get_num_threads()} threads, {options.repeats} rounds.\n",
            HEADER,
            *rows,
        ]
    )
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    return 0


def language_model(options: argparse.Namespace) -> Any:
    """An OPT with random weights, twice as large as fresh ones, so that it does not say the same of every prefix."""
    sizes = {
        "hidden_size": options.width,
        "word_embed_proj_dim": options.width,
        "num_hidden_layers": options.layers,
        "num_attention_heads": max(1, options.width // 64),
        "ffn_dim": 4 * options.width,
        "vocab_size": options.vocabulary,
        "max_position_embeddings": options.prefix + options.tokens + 2,
    }
    model = fresh_language_model(sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def measure(decoder: TransformersDecoder, batch: int, options: argparse.Namespace) -> str:
    """Return a row of the table."""
    inputs = torch.randn(batch, options.prefix, options.width)

    def ours(speed: Any) -> list[list[int]]:
        longest = options.tokens + 1
        settings = GenerationSettings(num_beams=options.beams, max_len=longest, min_len=longest, speed=speed)
        written = generate(decoder.search(inputs, settings), batch, STOP, settings)
        return [captions[0] for captions in written]

    def theirs() -> list[list[int]]:
        found: Tensor = decoder.network.generate(
            inputs_embeds=inputs,
            num_beams=options.beams,
            max_new_tokens=options.tokens,
            min_new_tokens=options.tokens,
            do_sample=False,
            eos_token_id=STOP,
            pad_token_id=1,
        )
        tokens: list[list[int]] = found.tolist()
        return tokens

    fast, reference = partial(ours, "fast"), partial(ours, "reference")
    if not fast() == reference() == theirs():
        raise UserError(f"batch {batch}: fast, reference and transformers write different tokens")
    ways: list[Callable[[], Any]] = [fast, reference, theirs, products_of(decoder.network, fast)]
    rounds = [[seconds(way) for way in ways] for _ in range(options.repeats)]
    own = statistics.median(times[0] for times in rounds)
    ratios = [spread([times[way] / times[0] for times in rounds]) for way in (1, 2, 3)]
    return f"| {batch} | {own:.3f} | {' | '.join(ratios)} |"


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
        for layer, count in calls:
            nn.functional.linear(noise[count, layer.in_features], layer.weight, layer.bias)

    return again


def seconds(run: Callable[[], Any]) -> float:
    """Return how long it takes: with one thread its CPU time, which waits for nobody; else by the clock on the wall."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    return clock() - start


def spread(values: list[float]) -> str:
    """Median, least and highest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
