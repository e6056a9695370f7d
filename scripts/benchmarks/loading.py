"""Measure what a part costs on this machine.

    python scripts/benchmarks/loading.py loader data/ucm data/rsicd --markdown benchmarks/loader.md
    python scripts/benchmarks/loading.py stream --records 200000

`loader` reads the first training images of prepared datasets in turn by a plain torch DataLoader, pair by pair,
grouped, from the pixel cache and from shards, whole epochs after a first one that is not counted. An image is
counted once for each caption that the model gets with it; grouped, five share one. CPU time is that of this process
and its workers.
`stream` reads one epoch of synthetic shards and shows the memory of the process that reads them.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import platform
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from bita.commands import command_line, program
from bita.config.run import RunConfig
from bita.config.schema import BuildInfo, DatasetConfig, EnvConfig, SplitConfig, StorageConfig
from bita.datasets.annotations import read_annotations
from bita.datasets.builders import Needs, build_dataset
from bita.datasets.loaders import TrainLoader
from bita.datasets.shards import ShardRecord, prepared_records, write_shards
from bita.processors.image import CLIP_MEAN, CLIP_STD
from bita.processors.rgb import ImageOpener

BATCH = 60
"""Captions of a batch, however many files their images come from."""
GROUP = 5
Epoch = Callable[[int], Iterable[Any]]
"""Number of an epoch → its batches."""


@dataclass(frozen=True)
class Way:
    """One way of loading: its name, its worker processes, its epochs."""

    name: str
    workers: int
    epoch: Epoch


@dataclass(frozen=True)
class Measurement:
    """An epoch read one way."""

    dataset: str
    way: Way
    images: int
    decoded: int
    seconds: float
    cpu_seconds: float


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, report; returns the exit code."""
    parser = command_line(__doc__)
    commands = parser.add_subparsers(dest="part", required=True)
    loader = commands.add_parser("loader", help="images a second and CPU time of every way of loading")
    loader.add_argument("folders", type=Path, nargs="+", help="prepared datasets")
    loader.add_argument("--size", type=int, default=224, help="image size (%(default)s)")
    loader.add_argument("--workers", type=int, default=2, help="worker processes; the cache needs none")
    loader.add_argument("--files", type=int, default=1000, help="image files of each dataset (%(default)s)")
    loader.add_argument("--repeats", type=int, default=3, help="epochs counted; the table has their medians")
    stream = commands.add_parser("stream", help="memory while shards are read")
    stream.add_argument("--records", type=int, default=200_000, help="synthetic records (%(default)s)")
    loader.set_defaults(measure=measure_loading)
    stream.set_defaults(measure=read_stream)
    for part in (loader, stream):
        part.add_argument("--markdown", type=Path, help="also write what is printed to this file")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        lines = args.measure(args, Path(scratch))
    command = shlex.join([Path(sys.argv[0]).name, *(sys.argv[1:] if arguments is None else arguments)])
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the end"
    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    text = "\n".join([f"`python scripts/benchmarks/{command}`: {machine}, {versions}.\n", *lines]) + "\n"
    print(text, end="")
    if args.markdown is not None:
        args.markdown.write_text(text, encoding="utf-8")
    return 0


# Loading


def measure_loading(args: argparse.Namespace, scratch: Path) -> list[str]:
    """Measure all ways of loading all datasets; the lines of the table."""
    lines = [
        "| dataset | way | workers | images/s | CPU ms an image | files decoded an image |",
        "|---|---|---|---|---|---|",
    ]
    for folder in args.folders:
        with decoding_counted():
            ways = loading_ways(folder, scratch / folder.name, args)
            rounds = [
                [read_epoch(folder.name, way, epoch) for way in ways] for epoch in range(args.repeats + 1)
            ]
        lines += [row(epochs) for epochs in zip(*rounds[1:], strict=True)]
    return lines


def row(epochs: Sequence[Measurement]) -> str:
    """Return a row of the table: medians over the epochs of one way."""
    first = epochs[0]
    rate = statistics.median(epoch.images / epoch.seconds for epoch in epochs)
    cost = statistics.median(1000 * epoch.cpu_seconds / epoch.images for epoch in epochs)
    share = statistics.median(epoch.decoded / epoch.images for epoch in epochs)
    return f"| {first.dataset} | {first.way.name} | {first.way.workers} | {rate:.0f} | {cost:.2f} | {share:.2f} |"


def loading_ways(folder: Path, scratch: Path, args: argparse.Namespace) -> list[Way]:
    """Return every way of loading the first images of a prepared training split."""
    files = folder / "annotations/train.json"
    records = [(r.image, r.caption, r.image_id) for r in read_annotations([files])]
    chosen = set(list(dict.fromkeys(image for image, _, _ in records))[: args.files])
    records = [record for record in records if record[0] in chosen]
    scratch.mkdir()
    (scratch / "images").symlink_to((folder / "images").resolve())
    (scratch / "annotations").mkdir()
    storage = scratch / "annotations/train.json"
    storage.write_text(
        json.dumps([dict(zip(("image", "caption", "image_id"), r, strict=True)) for r in records])
    )
    packed = write_shards(prepared_records(scratch, "train"), scratch, "train", 500)
    plain = DataLoader(
        PlainDataset(scratch / "images", [record[:2] for record in records], args.size),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
    )

    def way(name: str, source: Path, workers: int, **extra: int) -> Way:
        info = BuildInfo({"train": SplitConfig(storage=str(source))}, StorageConfig("images"))
        cfg = DatasetConfig(build_info=info, **extra)  # type: ignore[arg-type]
        data = build_dataset(
            folder.name,
            cfg,
            EnvConfig(str(scratch)),
            "train",
            train=True,
            needs=Needs(image_size=args.size),
        )
        run = RunConfig(batch_size_train=BATCH // (cfg.captions_per_image or 1), num_workers=workers)
        return Way(name, workers, partial(epoch_of, TrainLoader([data], run)))

    group = {"captions_per_image": GROUP}
    return [
        Way("torch DataLoader, torchvision", args.workers, lambda _: plain),
        way("pairs", storage, args.workers),
        way("grouped", storage, args.workers, **group),
        way("cached", storage, 0, cache_images=True),
        way("cached, grouped", storage, 0, cache_images=True, **group),
        way("shards", packed, args.workers),
        way("shards, grouped", packed, args.workers, **group),
    ]


def epoch_of(loader: TrainLoader, epoch: int) -> Iterable[Any]:
    """Return the batches of an epoch."""
    loader.set_epoch(epoch)
    return loader


class PlainDataset(Dataset[tuple[Tensor, str]]):
    """What one would write without this package: open the file, torchvision's transforms, one pair an item."""

    def __init__(self, folder: Path, pairs: Sequence[tuple[str, str]], size: int) -> None:
        from torchvision import transforms

        self.folder, self.pairs = folder, pairs
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    size, (0.5, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
                ),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(CLIP_MEAN, CLIP_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        name, caption = self.pairs[index]
        with Image.open(self.folder / name) as image:
            DECODED[reader()] += 1
            return self.transform(image.convert("RGB")), caption


DECODED = torch.zeros(65, dtype=torch.int64).share_memory_()
"""Files decoded by this process (first) and by each of its workers."""


@contextmanager
def decoding_counted() -> Iterator[None]:
    """Inside it, every image file that is decoded is counted, in worker processes too."""

    def counted(decode: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
        def count(*arguments: Any, **keywords: Any) -> Image.Image:
            DECODED[reader()] += 1
            return decode(*arguments, **keywords)

        return count

    with ExitStack() as stack:
        for name in ("open", "decode"):
            stack.enter_context(patch.object(ImageOpener, name, counted(getattr(ImageOpener, name))))
        yield


def reader() -> int:
    """Return this process's place in `DECODED`."""
    worker = get_worker_info()
    return 0 if worker is None else worker.id + 1


def read_epoch(dataset: str, way: Way, epoch: int) -> Measurement:
    """Read one epoch; all that its workers read ahead belongs to it."""
    start, cpu, decoded, images = time.perf_counter(), cpu_seconds(), int(DECODED.sum()), 0
    for batch in way.epoch(epoch):
        images += len(batch["text"] if isinstance(batch, dict) else batch[0])
    seconds = time.perf_counter() - start
    return Measurement(dataset, way, images, int(DECODED.sum()) - decoded, seconds, cpu_seconds() - cpu)


def cpu_seconds() -> float:
    """CPU time of this process and of its living workers."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return own.ru_utime + own.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


# Memory of a stream


def read_stream(args: argparse.Namespace, scratch: Path) -> list[str]:
    """Write synthetic shards, read one epoch of them; resident memory, anonymous and of mapped files, as it goes."""
    write_shards(synthetic_records(args.records), scratch, "train", 10_000)
    info = BuildInfo({"train": SplitConfig(storage="train.shards.json")})
    data = build_dataset(
        "corpus",
        DatasetConfig(build_info=info),
        EnvConfig(str(scratch)),
        "train",
        train=True,
        needs=Needs(image_size=16),
    )
    loader = TrainLoader([data], RunConfig(batch_size_train=100, num_workers=0))
    lines = ["| records read | resident MB, own | resident MB, mapped files |", "|---|---|---|"]
    every = max(1, len(loader) // 10)
    for step, _ in enumerate(loader, 1):
        if step == 1 or step % every == 0:
            lines.append(f"| {step * 100} | {resident('RssAnon'):.1f} | {resident('RssFile'):.1f} |")
    return lines


def synthetic_records(count: int) -> Iterator[ShardRecord]:
    """Records that share 64 pictures of noise and have captions of their own."""
    pictures = []
    for seed in range(64):
        file = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "JPEG")
        pictures.append(file.getvalue())
    for number, picture in zip(range(count), itertools.cycle(pictures), strict=False):
        yield ShardRecord(f"{number:09d}", ".jpg", picture, (f"synthetic scene {number}",), number)


def resident(kind: str) -> float:
    """Resident memory of this process in MB: RssAnon or RssFile."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{kind}:"))


if __name__ == "__main__":
    sys.exit(main())
