"""What a frozen encoder says of images, made once for every epoch: K views an image, in a file.

Shapes: V images, K views of each, N image tokens, C image width, S the processors' image size.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bita import distributed
from bita.datasets import faults
from bita.datasets.cache import FeatureCache, is_whole, new_array
from bita.datasets.captions import CaptionDataset, seeded
from bita.errors import UserError
from bita.files import TEMPORARY, exclusive
from bita.processors.image import TrainImageProcessor

LOG = logging.getLogger(__name__)
Encode = Callable[[Tensor], Tensor]
"""(B, 3, S, S), on the CPU → (B, N, C)."""


@dataclass(frozen=True)
class Views:
    """The views of a dataset's images that an encoder is shown.

    Attributes:
        dataset: its images, in the order of `image_names`.
        count: K random views of the training processor; None: the evaluation processor's one.
        seed: the k-th view of the v-th image is drawn from (seed, k, v).
    """

    dataset: CaptionDataset
    count: int | None
    seed: int

    def of(self, rows: Sequence[int], view: int) -> Dataset[Tensor]:
        """Return one view of some images, each (3, S, S)."""
        return _View(self, rows, view)

    @property
    def in_batches(self) -> bool:
        """Whether they are made of cached images, as training makes them: many at a time."""
        drawn = self.count is not None and self.dataset.cache is not None
        return drawn and type(self.dataset.processors.train_image) is TrainImageProcessor

    def key(self, encoder: str) -> str:
        """Return a hash of all that the features depend on; `encoder` is the encoder's (`encoder_hash`)."""
        data = self.dataset
        processor = data.processors.eval_image if self.count is None else data.processors.train_image
        rule = {
            name: value.tolist() if isinstance(value, Tensor) else str(value)  # as text it would be rounded
            for name, value in sorted(vars(processor).items())
        }
        opened = (data.opener.rule, data.cache and data.cache.size, *(["batches"] if self.in_batches else []))
        drawn = self.count and (self.count, self.seed)
        kind = (type(processor).__qualname__, _source(type(processor)))
        found = hashlib.sha256(repr((encoder, drawn, kind, rule, opened)).encode())
        for name in data.image_names:
            status = (data.folder / name).stat()
            found.update(f"\n{name} {status.st_size} {status.st_mtime_ns}".encode())
        return found.hexdigest()[:16]


class _View(Dataset[Tensor]):
    def __init__(self, views: Views, rows: Sequence[int], view: int) -> None:
        self.views, self.rows, self.view = views, rows, view

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        data, row = self.views.dataset, self.rows[index]
        image = data.open(data.groups[row][0])
        if self.views.count is None:
            return data.processors.eval_image(image)
        return data.processors.train_image.draw(image, self._generator(row))

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """Return a batch's images; torch's loader asks for them so."""
        data, rows = self.views.dataset, [self.rows[index] for index in indices]
        if not self.views.in_batches:
            return [self[index] for index in indices]
        processor = data.processors.train_image
        assert type(processor) is TrainImageProcessor
        pixels = data.cached_pixels([data.groups[row][0] for row in rows])
        return list(processor.batch(pixels, [self._generator(row) for row in rows]))

    def _generator(self, row: int) -> torch.Generator:
        return seeded(self.views.seed, self.view, row)


def encoder_hash(encoder: torch.nn.Module, settings: str) -> str:
    """Hash of an encoder's weights and of `settings`: what else decides its output, such as precision and layers."""
    found = hashlib.sha256(f"{settings} {_source(type(encoder))}".encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _source(kind: type) -> str:
    """Return the text of the module of a part of one's own, whose output may change with it; of the package's, none."""
    if kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return ""
    try:
        return inspect.getsource(sys.modules[kind.__module__])
    except (OSError, TypeError, KeyError):  # typed at a prompt
        return ""


def open_features(views: Views, encode: Encode, path: Path, *, batch_size: int, workers: int) -> FeatureCache:
    """Open a file of features; where it is not there, all processes make it together, each its share of the images.

    Args:
        views: what is encoded.
        encode: the frozen encoder, in evaluation mode.
        path: the file, the same for all processes; `Views.key` should be in its name.
        batch_size: images encoded at a time.
        workers: loader processes.

    Raises:
        UserError: the disk has no room, a value does not fit into 16 bit, or an image does not open.
    """
    if not distributed.on_main(lambda: is_whole(path)):
        with _alone_at(path) as missing:
            if missing:
                _make(views, encode, path, batch_size, workers)
    return FeatureCache(path)


@contextmanager
def _alone_at(path: Path) -> Iterator[bool]:
    """Keep other runs from a file that this one makes; whether it is still missing, when they have let go of it."""
    lock = path.with_suffix(".lock")
    with ExitStack() as held:
        distributed.on_main(lambda: held.enter_context(exclusive(lock)))
        yield distributed.on_main(lambda: not is_whole(path))
        if distributed.is_main():
            lock.unlink(missing_ok=True)  # the file is whole: nobody asks for the lock any more


def _make(views: Views, encode: Encode, path: Path, batch_size: int, workers: int) -> None:
    """Encode, all processes together, each its share of the images, and put the file at its place."""
    images, count = len(views.dataset.groups), views.count or 1
    share = range(distributed.rank(), images, distributed.world_size())
    with torch.inference_mode():
        shape = encode(next(iter(DataLoader(views.of([0], 0))))).shape[1:]
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    distributed.on_main(lambda: _make_room(temporary, (count, images, *shape)))
    target = np.load(temporary, mmap_mode="r+")
    problem = None
    try:
        with faults.watch_workers(lambda _: views.dataset.name):
            for view in range(count):
                loader = DataLoader(
                    views.of(share, view),
                    batch_size,
                    num_workers=workers,
                    collate_fn=_stacked,
                    timeout=faults.look_after(workers),
                )
                for number, batch in enumerate(faults.batches(loader)):
                    with torch.inference_mode():
                        tokens = encode(batch).half().cpu()
                    if not torch.isfinite(tokens).all():
                        raise UserError(
                            "run.cache_features: the encoder's values are beyond 16 bit; set it to null"
                        )
                    target[view, share[number * batch_size : (number + 1) * batch_size]] = tokens.numpy()
        target.flush()
    except UserError as error:
        last = str(error).strip().splitlines()[-1]  # a worker's comes with its traceback
        problem = re.sub(r"^bita\.errors\.\w+: ", "", last)
    problems = [found for found in distributed.gather_objects(problem) if found]
    distributed.on_main(lambda: temporary.unlink() if problems else temporary.replace(path))
    if problems:
        raise UserError(problems[0])


def _stacked(images: list[Tensor]) -> Tensor:
    return faults.share(torch.stack(images))


def _make_room(path: Path, shape: tuple[int, ...]) -> None:
    """Say what the file takes, and make it, empty."""
    size, free = 2 * int(np.prod(shape)), shutil.disk_usage(path.parent).free
    said = f"{size / 1e9:.2f} GB for {shape[0]} views of {shape[1]} images in {path.parent}"
    if size > free:
        problem = f"wants {said}, where {free / 1e9:.2f} GB are free"
        raise UserError(f"run.cache_features: {problem}; ask for fewer views, or make room")
    LOG.info("run.cache_features: %s", said)
    try:
        new_array(path, np.float16, shape).flush()
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UserError(
            f"run.cache_features: cannot write {said} ({error.strerror}); make room, or set it to null"
        ) from None
