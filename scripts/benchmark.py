"""Measure what a part costs on this machine.

    python scripts/benchmark.py loader data/ucm data/rsicd --size 224 --workers 2 --markdown benchmarks/loading.md

`loader` reads the training split of prepared datasets pair by pair, grouped, from the pixel cache and from shards,
in one run: pairs a second, CPU time a pair (this process and its workers), and how many images were decoded.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bita.datasets.builders import build_dataset
from bita.datasets.captions import CaptionDataset
from bita.datasets.loaders import train_loader
from bita.datasets.shards import prepared_records, write_shards
from bita.errors import program
from bita.schema import BuildInfo, DatasetConfig, EnvConfig, RunConfig, SplitConfig, StorageConfig


@dataclass(frozen=True)
class Measurement:
    """One way of loading one dataset."""

    dataset: str
    way: str
    workers: int
    pairs: int
    decoded: int
    seconds: float
    cpu_seconds: float

    def row(self) -> str:
        """A row of the table."""
        rate, cost = self.pairs / self.seconds, 1000 * self.cpu_seconds / self.pairs
        cells = (
            self.dataset,
            self.way,
            self.workers,
            f"{rate:.0f}",
            f"{cost:.2f}",
            f"{self.decoded / self.pairs:.2f}",
        )
        return f"| {' | '.join(map(str, cells))} |"


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, report; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="part", required=True)
    loader = commands.add_parser("loader", help="the four ways of loading")
    loader.add_argument("folders", type=Path, nargs="+", help="prepared datasets")
    loader.add_argument("--size", type=int, default=224, help="image size")
    loader.add_argument("--workers", type=int, default=2, help="worker processes; the cache needs none")
    loader.add_argument("--pairs", type=int, default=5000, help="image-caption pairs measured each way")
    loader.add_argument("--markdown", type=Path, help="write the table to this file")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        found = [m for f in options.folders for m in measure_folder(f, Path(scratch), options)]
    text = report(found, arguments)
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text)
    return 0


def measure_folder(folder: Path, scratch: Path, options: argparse.Namespace) -> list[Measurement]:
    """Measure all ways of loading one prepared dataset."""
    index = write_shards(prepared_records(folder, "train"), scratch / folder.name, "train", 2000)
    files, shards = folder / "annotations/train.json", str(index)
    ways = [
        ("pairs", dataset(folder, str(files), options.size), options.workers),
        ("grouped", dataset(folder, str(files), options.size, captions_per_image=5), options.workers),
        ("cached", dataset(folder, str(files), options.size, cache_images=True), 0),
        (
            "cached, grouped",
            dataset(folder, str(files), options.size, cache_images=True, captions_per_image=5),
            0,
        ),
        ("shards", dataset(folder, shards, options.size), options.workers),
        ("shards, grouped", dataset(folder, shards, options.size, captions_per_image=5), options.workers),
    ]
    return [measure(folder.name, way, data, workers, options.pairs) for way, data, workers in ways]


def dataset(folder: Path, storage: str, size: int, **extra: int) -> CaptionDataset:
    """Build the training split of a prepared folder."""
    info = BuildInfo({"train": SplitConfig(storage=storage)}, StorageConfig("images"))
    cfg = DatasetConfig(build_info=info, **extra)  # type: ignore[arg-type]
    env = EnvConfig(str(folder.resolve()))
    return build_dataset(folder.name, cfg, env, "train", train=True, seed=42, image_size=size)


def measure(name: str, way: str, data: CaptionDataset, workers: int, pairs: int) -> Measurement:
    """Load ``pairs`` pairs; the first epoch's first batch, which starts the workers, is not counted."""
    group = data.captions_per_image or 1
    loader = train_loader([data], RunConfig(batch_size_train=60 // group, num_workers=workers))
    batches = iter(loader)
    next(batches)
    start, cpu, seen, epoch = time.perf_counter(), _cpu_seconds(), 0, 0
    while seen < pairs:
        batch = next(batches, None)
        if batch is None:
            epoch += 1
            loader.set_epoch(epoch)
            batches = iter(loader)
            continue
        seen += len(batch["text"])
    seconds = time.perf_counter() - start
    del batches, loader
    decoded = 0 if data.cache is not None else seen // group
    return Measurement(name, way, workers, seen, decoded, seconds, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    """CPU time of this process and of its workers that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def report(found: Sequence[Measurement], arguments: Sequence[str] | None) -> str:
    """Return the table with the machine and the command."""
    command = shlex.join(
        ["python", "scripts/benchmark.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    lines = [
        "# Loading\n",
        f"`{command}`\n",
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, torch {torch.__version__},"
        f" {torch.get_num_threads()} threads. CPU time counts the workers too, with their start.\n",
        "| dataset | way | workers | pairs/s | CPU ms a pair | decodes a pair |",
        "|---|---|---|---|---|---|",
        *(measurement.row() for measurement in found),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
