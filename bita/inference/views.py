"""What models see of images, whatever these come as: opened and resized in threads ahead of the model, normalised
on its device in batches.

Shapes: B images, S the processors' image size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from io import BufferedIOBase, RawIOBase
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bita.datasets.captions import Processors
from bita.errors import UserError
from bita.files import user_path
from bita.machine import ahead, cores, fetch, in_turns
from bita.processors.arrays import ACCEPTED, is_raster, samples_of
from bita.processors.image import EvalImageProcessor
from bita.processors.rgb import ImageOpener, in_one_line
from bita.processors.samples import Samples

T = TypeVar("T")

ImageLike = Any
"""A path, a PIL image, an encoded image's bytes or an open file of them, an array (H, W), (H, W, 3) or
(H, W, bands), a tensor (C, H, W), an open raster of rasterio, a pair (raster, window), or whatever is `Openable`."""


class Openable(Protocol):
    """An image that knows how to open itself, in any thread."""

    def open_with(self, opener: ImageOpener) -> Image.Image:
        """Return it as 8-bit RGB, by the rules of `opener`; raises UserError."""


_Held = tuple[str, Path | bytes | Image.Image | Samples | Openable | UserError]
"""How an image is called in messages, and the image as any thread may open it."""
Seen = list[Tensor]
"""One image as each of several views has it."""


def as_images(images: ImageLike | Iterable[ImageLike]) -> tuple[Iterable[ImageLike], bool]:
    """Return several images, or the only one as a list; and whether it is only one.

    An array or a tensor of four dimensions is several images.

    Raises:
        UserError: it is neither an image nor something to go through.
    """
    if isinstance(images, np.ndarray | Tensor):
        several = images.ndim == 4 or (isinstance(images, np.ndarray) and images.dtype.kind in "OUS")
        return (images, False) if several else ([images], True)
    if isinstance(images, str | Path | bytes | RawIOBase | BufferedIOBase | Image.Image) or is_raster(images):
        return [images], True
    if images is None or isinstance(images, dict) or not isinstance(images, Iterable):
        kind = "None" if images is None else type(images).__name__
        raise UserError(f"images: wanted {ACCEPTED}, or several of them, not {kind}")
    return images, False


class View:
    """How one model sees images: its run's own processors, applied in two steps.

    Attributes:
        processors: the run's.
    """

    def __init__(self, processors: Processors) -> None:
        self.processors = processors
        self._resized = type(processors.eval_image) is EvalImageProcessor

    @property
    def opener(self) -> ImageOpener:
        """What opens image files for it."""
        return self.processors.eval_open

    def of(self, image: Image.Image) -> Tensor:
        """An 8-bit RGB image → what `batch` takes: (S, S, 3) uint8, or what a processor of another kind makes of it."""
        processor: Any = self.processors.eval_image
        return processor.resized(image) if self._resized else processor(image)

    def batch(self, seen: Sequence[Tensor], device: torch.device) -> Tensor:
        """B images as `of` gives them → (B, 3, S, S) on a device."""
        pixels = torch.stack(list(seen)).to(device)
        processor: Any = self.processors.eval_image
        return processor.batch(pixels) if self._resized else pixels


def works_beside(device: torch.device) -> bool:
    """Whether threads may work while a model does on a device: it is no CPU, or leaves cores of it alone."""
    return device.type != "cpu" or torch.get_num_threads() < cores()


def seen_ahead(
    images: Iterable[ImageLike], views: Sequence[View], most: int, device: torch.device
) -> Iterator[Seen | UserError]:
    """Each image as every view has it, or why it does not open, up to `most` images worked out ahead.

    Args:
        images: of any kind.
        views: of the models that look at them.
        most: images that are held.
        device: of these models.
    """

    def look(held: _Held) -> Seen | UserError:
        where, image = held
        opened: dict[ImageOpener, Image.Image] = {}
        try:
            for view in views:
                if view.opener not in opened:
                    opened[view.opener] = _opened(where, image, view.opener)
            return [view.of(opened[view.opener]) for view in views]
        except UserError as error:
            return error

    if works_beside(device):
        return ahead(look, _held(images), most)
    return in_turns(look, map(_announced, _held(images)), most)


def opened(image: ImageLike, opener: ImageOpener) -> Image.Image:
    """Return one image of any kind as 8-bit RGB, upright.

    Raises:
        UserError: it cannot be read.
    """
    return _opened(*next(_held([image])), opener)


def _held(images: Iterable[ImageLike]) -> Iterator[_Held]:
    """Read what only the caller's own thread may read: open rasters, PIL images that were not loaded."""
    for number, image in enumerate(images):
        where = f"images[{number}]"
        try:
            if isinstance(image, str | Path):
                path = user_path(image)
                if path.is_dir():
                    raise UserError(
                        f"{path}: image does not open (it is a folder; give its images, Path(…).glob('*.png'))"
                    )
                yield where, path
            elif isinstance(image, RawIOBase | BufferedIOBase):
                yield where, image.read()
            elif isinstance(image, bytes) or hasattr(image, "open_with"):
                yield where, image
            elif isinstance(image, Image.Image):
                with in_one_line(where):
                    image.load()
                yield where, image
            else:
                with in_one_line(where):
                    samples = samples_of(image)
                yield where, samples
        except UserError as error:
            yield where, error


def _announced(held: _Held) -> _Held:
    """Let the disk begin on an image's file, where it has one."""
    path = getattr(held[1], "path", held[1])
    if isinstance(path, Path):
        fetch(path)
    return held


def _opened(
    where: str, image: Path | bytes | Image.Image | Samples | Openable | UserError, opener: ImageOpener
) -> Image.Image:
    if isinstance(image, UserError):
        raise image
    if isinstance(image, Path):
        return opener.open(image)
    if isinstance(image, bytes):
        return opener.decode(image, where)
    if isinstance(image, Image.Image | Samples):
        with in_one_line(where):
            return opener.convert(image) if isinstance(image, Image.Image) else opener.show(image)
    return image.open_with(opener)
