"""Row of benchmark.py: whether a sample costs the same, and memory stays, as everything grows; a table and a plot.

The ratio is the cost of a sample at the smallest size over that at this one: at least 1 where it is flat or falling.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from arithmetic import small_captioner
from captioning import SMALL, Sizes, language_model
from loading import resident, synthetic_records
from programs import ROOT, scenes, tiny
from turns import Row, row

from bita.config.run import RunConfig
from bita.config.schema import BuildInfo, DatasetConfig, EnvConfig, SplitConfig
from bita.datasets.builders import Needs, build_dataset
from bita.datasets.loaders import TrainLoader
from bita.datasets.shards import write_shards
from bita.errors import UserError
from bita.models.language.generation import GenerationSettings, generate
from bita.models.language.language_model import TransformersDecoder

Point = tuple[int, float, float]
"""Size, seconds a sample, resident MB."""
STOP = 3
QUIETLY: dict[str, Any] = {
    "env": os.environ | {"OMP_NUM_THREADS": "1"},
    "stdout": subprocess.DEVNULL,
    "stderr": subprocess.DEVNULL,
}
"""How programs are started."""


def growth(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """Images read from shards, batch, beams, length, processes: each alone, the rest as it is."""
    small = args.small
    alone_or_two = (1,) if small else (1, 2)
    curves: dict[tuple[str, str], list[Point]] = {
        ("images of an epoch", "image"): list(
            images((100, 400) if small else (1000, 10_000, 50_000, 200_000), scratch)
        ),
        ("training batch", "caption"): list(batches((2, 4) if small else (4, 8, 16, 32, 64), small)),
        ("captioning batch", "caption"): list(captions("batch", (1, 2) if small else (1, 4, 16, 64), small)),
        ("beams", "beam"): list(captions("beams", (1, 2) if small else (1, 2, 5, 10), small)),
        ("caption length", "token"): list(
            captions("tokens", (2, 4) if small else (5, 10, 21, 42, 84), small)
        ),
        ("processes", "image, of a core"): list(processes(alone_or_two, scratch, small)),
        ("programs at once", "image, of a core"): list(processes(alone_or_two, scratch, small, apart=True)),
    }
    if args.plot is not None:
        plot(curves, args.plot)
    return [
        row(
            f"growth, {what} {size:,}",
            [cost],
            [points[0][1]],
            against=f"{points[0][0]:,}",
            unit=unit,
            same=f"{memory:.0f} MB resident",
        )
        for (what, unit), points in curves.items()
        for size, cost, memory in points
    ]


def images(sizes: tuple[int, ...], scratch: Path) -> Iterator[Point]:
    """An epoch of training batches from shards; memory is this process's own, files not counted."""
    for size in sizes:
        folder = scratch / str(size)
        folder.mkdir()
        write_shards(synthetic_records(size), folder, "train", 10_000)
        cfg = DatasetConfig(build_info=BuildInfo({"train": SplitConfig(storage="train.shards.json")}))
        data = build_dataset("corpus", cfg, EnvConfig(str(folder)), "train", Needs(image_size=16), train=True)
        start = time.process_time()
        for _ in TrainLoader([data], RunConfig(batch_size_train=100, num_workers=0)):
            pass
        yield size, (time.process_time() - start) / size, resident("RssAnon")


def batches(sizes: tuple[int, ...], small: bool) -> Iterator[Point]:
    """A stage-2 step through a frozen decoder, five captions an image."""
    model = small_captioner(32 if small else 256, 1 if small else 4, 640)
    for size in sizes:
        read = torch.randn(size, model.cfg.num_query_token, model.cfg.bridge_size.hidden_size)
        ids = torch.randint(4, 640, (5 * size, 15))

        def step(read: torch.Tensor = read, ids: torch.Tensor = ids) -> None:
            model.caption_loss(model.opt_proj(read), ids, ids).backward()

        yield size, best(step) / (5 * size), resident("RssAnon")


def captions(what: str, sizes: tuple[int, ...], small: bool) -> Iterator[Point]:
    """Captions after a prefix, by beams, to the last token."""
    usual = replace(SMALL if small else Sizes(width=256, layers=4), tokens=4 if small else 21)
    usual = replace(usual, tokens=max(usual.tokens, max(sizes) if what == "tokens" else 0))
    decoder = TransformersDecoder(language_model(usual))
    for size in sizes:
        batch = size if what == "batch" else 8
        beams = size if what == "beams" else 5
        tokens = size if what == "tokens" else min(usual.tokens, 21)
        settings = GenerationSettings(num_beams=beams, max_len=tokens + 1, min_len=tokens + 1)
        inputs = torch.randn(batch, usual.prefix, usual.width)
        with torch.inference_mode():
            taken = best(partial(write, decoder, inputs, settings))
        yield size, taken / batch / (1 if what == "batch" else size), resident("RssAnon")


def write(decoder: TransformersDecoder, inputs: torch.Tensor, settings: GenerationSettings) -> None:
    """Caption a batch of prefixes."""
    generate(decoder.search(inputs, settings), len(inputs), STOP, settings)


def processes(counts: tuple[int, ...], scratch: Path, small: bool, *, apart: bool = False) -> Iterator[Point]:
    """The second of three epochs of the tiny recipe's stage 1, a core each; memory is the most that a process has held.

    With `apart` each process is a run of its own, beside the others and without an exchange: what the machine gives.
    """
    data = scratch / "epoch"
    if not data.exists():
        scenes(data, train=96 if small else 960, val=1, test=1, size=112)
    for count in counts:
        programs, each = (count, 1) if apart else (1, count)
        outs = [scratch / f"processes_{count}_{apart}_{number}" for number in range(programs)]
        started = [subprocess.Popen(epochs(data, out, each), cwd=ROOT, **QUIETLY) for out in outs]
        codes = [program.wait() for program in started]
        if any(codes):
            raise UserError(f"growth: train.py failed in {outs[0]}")
        speed = sum(_second_epoch(out) for out in outs)
        yield count, count / speed, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def epochs(data: Path, out: Path, processes: int) -> list[str]:
    """Return the command that trains three epochs on so many processes."""
    keys = ("run.max_epoch=3", "run.log_freq=1000", "run.test_splits=[]")
    config, options = tiny("pretrain_stage1", data, out, *keys)
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    alone = [sys.executable, *(start if processes > 1 else [])]
    return [*alone, "train.py", "--cfg-path", config, "--options", *options]


def _second_epoch(out: Path) -> float:
    """Images a second: the process is warm, and others that began with it are still at work."""
    lines = [json.loads(line) for line in (out / "latest/log.jsonl").read_text().splitlines()]
    return float([line["images_per_second"] for line in lines if line["event"] == "train"][1])


def best(run: Callable[[], Any]) -> float:
    """CPU seconds of a run, the least of three after one for nothing."""
    times = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(4):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    torch.set_num_threads(threads)
    return min(times[1:])


def plot(curves: dict[tuple[str, str], list[Point]], path: Path) -> None:
    """Draw each curve: cost of a sample, and memory beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(2, 4, figsize=(16, 6.5), layout="constrained")
    for unused in places.flat[len(curves) :]:
        unused.remove()
    for place, ((what, unit), points) in zip(places.flat, curves.items(), strict=False):
        sizes, costs, memory = zip(*points, strict=True)
        place.plot(sizes, [1000 * cost for cost in costs], "o-", color="#1f5fa8")
        place.set(xlabel=what, ylabel=f"ms a {unit}", xscale="log", ylim=(0, 1500 * max(costs)))
        place.set_xticks(sizes, [f"{size:,}" for size in sizes])
        place.minorticks_off()
        beside = place.twinx()
        beside.plot(sizes, memory, "s--", color="#999999", markersize=4)
        beside.set(ylabel="resident MB (grey)", ylim=(0, 1.5 * max(memory)))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
