"""Loaders: which records make which batch on which rank.

Every epoch has one order of all records, which depends on seed and epoch alone. Step s of W ranks with batches of
B takes its positions s·W·B … (s+1)·W·B - 1, rank r the r-th B of them. What is random about a record depends on its
position: not on ranks, workers, or the step at which a run was resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bita.batch import Batch
from bita.config.run import RunConfig
from bita.datasets.captions import CaptionDataset, Split, seeded
from bita.datasets.faults import BadRecord, Failure, batches, look_after
from bita.datasets.readers import EvalReader, Reader, TrainKey, TrainReader
from bita.errors import ConfigError, UserError

CHUNK, WINDOW = 128, 64
"""Sharded records are read in chunks of 128 neighbours, and shuffled in windows of 64 chunks."""


SHOWN_IMAGES = 8
"""Images that a message names."""


@dataclass
class EpochSampler:
    """What one rank reads in which step of an epoch.

    Attributes:
        sizes: records of each dataset; they are numbered through.
        weights: (datasets,) share of draws that each dataset gets; None takes every record once.
        seed: seed of the order.
        batch_size: records a rank and step.
        rank: this process, from 0.
        world_size: number of processes.
        chunk: records that stay near each other in the order, because they lie near each other on the disk.
        epoch: which is gone through.
        start_step: the step that it is gone through from.
    """

    sizes: Sequence[int]
    weights: Tensor | None
    seed: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    chunk: int = 1
    epoch: int = 0
    start_step: int = 0

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return sum(self.sizes) // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[TrainKey]]:
        """Yield the keys of this rank's records, step by step from the chosen one on."""
        order, epoch = self.order(), self.epoch
        for step in range(self.start_step, len(self)):
            first = (step * self.world_size + self.rank) * self.batch_size
            places = order[first : first + self.batch_size].tolist()
            yield [(place, epoch, first + offset) for offset, place in enumerate(places)]

    def order(self) -> Tensor:
        """Return the epoch's order: (records,) int64, places in the concatenation of the datasets."""
        generator = seeded(self.seed, self.epoch)
        total = sum(self.sizes)
        if self.weights is None:
            return _near_order(total, self.chunk, generator)
        chosen = torch.multinomial(self.weights, total, replacement=True, generator=generator)
        order = torch.empty(total, dtype=torch.int64)
        offset = 0
        for number, size in enumerate(self.sizes):
            drawn = (chosen == number).nonzero()[:, 0]
            rounds = -(-len(drawn) // size)
            if rounds:
                shuffled = torch.cat([_near_order(size, self.chunk, generator) for _ in range(rounds)])
                order[drawn] = shuffled[: len(drawn)] + offset
            offset += size
        return order


def _near_order(total: int, chunk: int, generator: torch.Generator) -> Tensor:
    """Return an order of `total` records, (total,) int64: chunks shuffled, then records within windows."""
    if chunk == 1:
        return torch.randperm(total, generator=generator)
    starts = torch.randperm(-(-total // chunk), generator=generator) * chunk
    order = (starts[:, None] + torch.arange(chunk)).flatten()
    order = order[order < total]
    windows = [part[torch.randperm(len(part), generator=generator)] for part in order.split(chunk * WINDOW)]
    return torch.cat(windows)


class Loader:
    """Batches of one rank, and what went wrong while they were read.

    Args:
        reader: reads them, in workers where there are any.
        sampler: yields what each batch is read from.
        run: reads num_workers, device.
    """

    def __init__(self, reader: Reader[Any], sampler: Any, run: RunConfig) -> None:
        self._reader = reader
        workers = 0 if reader.cached else run.num_workers
        self._loader: DataLoader[Any] = DataLoader(
            reader,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_as_is,
            timeout=look_after(workers),
            persistent_workers=workers > 0,
            prefetch_factor=2 if workers > 0 else None,
            pin_memory=not reader.cached and torch.cuda.is_available() and run.device != "cpu",
        )
        self._bad: list[BadRecord] = []

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; raises UserError for an image that does not open, unless it is left out."""
        for item in batches(self._loader):
            if isinstance(item, Failure):
                raise UserError(item.message)
            batch, bad = item
            self._bad += bad
            yield batch

    def take_bad(self) -> list[BadRecord]:
        """Return the records that were left out since the last call."""
        bad, self._bad = self._bad, []
        return bad

    def watch(self) -> AbstractContextManager[None]:
        """Inside it, a worker that dies is a UserError that names the record."""
        return self._reader.whereabouts.watch()


class TrainLoader(Loader):
    """Shuffled training batches of one rank; the last incomplete batch is dropped.

    Args:
        datasets: they are concatenated; with ratios, drawn from.
        run: reads seed, batch_size_train (images a rank, where an image has several captions), num_workers,
            train_dataset_ratios, device, on_bad_image.
        rank: this process, from 0.
        world_size: number of processes.
        device: where cached images are augmented, and batches of them lie; None is the CPU.

    Raises:
        UserError: there are fewer records than a batch on every rank needs.
        ConfigError: train_dataset_ratios does not fit the datasets.
    """

    def __init__(
        self,
        datasets: Sequence[Split],
        run: RunConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        sizes = [len(dataset) for dataset in datasets]
        weights = _ratios(datasets, run.train_dataset_ratios)
        chunk = CHUNK if any(dataset.sharded for dataset in datasets) else 1
        self.sampler = EpochSampler(sizes, weights, run.seed, run.batch_size_train, rank, world_size, chunk)
        if len(self) == 0:
            raise UserError(
                f"train splits: {sum(sizes)} records are less than one batch of {run.batch_size_train} on each of "
                f"{world_size} processes; lower run.batch_size_train"
            )
        self._train_reader = TrainReader(
            datasets,
            run.seed,
            device or torch.device("cpu"),
            skip=run.on_bad_image == "skip",
            workers=run.num_workers,
        )
        super().__init__(self._train_reader, self.sampler, run)

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return len(self.sampler)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose what the next iteration goes through: `epoch`, from `start_step` on; the rest is not read."""
        self.sampler.epoch = epoch
        self.sampler.start_step = start_step

    def image_names(self, image_ids: Sequence[int]) -> str:
        """Return how images of batches are called in their datasets' files, each once, for messages."""
        names = [self._train_reader.image_name(image_id) for image_id in dict.fromkeys(image_ids)]
        more = len(names) - SHOWN_IMAGES
        return ", ".join(names[:SHOWN_IMAGES]) + (f" and {more} more" if more > 0 else "")


class EvalLoader(Loader):
    """Batches of one rank's share of a dataset's images: one record an image, every image on exactly one rank.

    `batch["text"]` holds each image's first caption. The processors are the eval ones, whatever the split. With `kept`,
    batches hold what the encoder once said of the images (`run.cache_features`), where the dataset has it.
    """

    def __init__(
        self,
        dataset: CaptionDataset,
        run: RunConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        kept: bool = False,
    ) -> None:
        records = [group[0] for group in dataset.groups][rank::world_size]
        size = run.batch_size_eval
        self._steps = [records[start : start + size] for start in range(0, len(records), size)]
        reader = EvalReader(dataset, skip=run.on_bad_image == "skip", workers=run.num_workers, kept=kept)
        super().__init__(reader, self._steps, run)

    def __len__(self) -> int:
        """Batches of this rank; the last one may be smaller."""
        return len(self._steps)


def _as_is(batch: Any) -> Any:
    return batch


def _ratios(datasets: Sequence[Split], ratios: dict[str, float] | None) -> Tensor | None:
    """Return the share of draws that each dataset gets, or None where every record comes once."""
    if ratios is None:
        return None
    names = [dataset.name for dataset in datasets]
    missing = [name for name in names if name not in ratios]
    unknown = [name for name in ratios if name not in names]
    if missing or unknown:
        raise ConfigError(
            f"run.train_dataset_ratios: wanted one ratio for each of {', '.join(names)}"
            f" (missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'})"
        )
    if min(ratios.values()) < 0 or sum(ratios.values()) <= 0:
        raise ConfigError("run.train_dataset_ratios: ratios must not be negative, nor all zero")
    return torch.tensor([ratios[name] for name in names], dtype=torch.float64)
