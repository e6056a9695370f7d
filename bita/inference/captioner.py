"""Captioning outside training: `bita.load(RUN).caption(images)`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import torch
from PIL import Image
from torch import Tensor

from bita.build import build_model
from bita.config.parts import Quantization
from bita.datasets.builders import processors_of
from bita.datasets.captions import seeded
from bita.distributed import setup
from bita.errors import UserError
from bita.export import config_of
from bita.files import user_path
from bita.models.language.generation import GenerationSettings
from bita.precision import autocast
from bita.registry import models

if TYPE_CHECKING:
    from bita.config.schema import Config

ImageLike = str | Path | Image.Image


class Captioner:
    """A trained captioning model with its processors and search settings.

    Attributes:
        model: on its device, in evaluation mode.
        settings: the search settings of its run; pass others to `caption`.
        processors: its run's; `processors.evaluated(image)` is what the model sees of an image.
    """

    def __init__(self, cfg: Config, device: str = "auto") -> None:
        model = build_model(cfg.model)
        if not models.config(cfg.model.arch).writes_captions:
            raise UserError(
                f"{cfg.model.init_from}: is a stage-1 checkpoint, which aligns but does not write captions"
            )
        self.model = model.place(setup(device)).eval()
        self.model.merge_lora()
        self.settings = GenerationSettings.from_run(cfg.run)
        self.amp = cfg.run.amp
        self.processors = processors_of(cfg)

    @classmethod
    def load(cls, run: str | Path, device: str = "auto", quantize: str = "none") -> Self:
        """See `bita.load`."""
        cfg = config_of(run)
        if quantize not in get_args(Quantization):
            raise UserError(f"quantize={quantize!r}: choose one of {', '.join(get_args(Quantization))}")
        if hasattr(cfg.model, "lm_quantize"):
            cfg.model.lm_quantize = quantize
        return cls(cfg, device)

    def caption(
        self, images: ImageLike | Sequence[ImageLike], *, batch_size: int = 16, **settings: Any
    ) -> str | list[str]:
        """Write a caption for an image (a path or a PIL image) or for each of several.

        Args:
            images: one image gives a text, a sequence gives a list of texts.
            batch_size: images encoded at a time.
            settings: fields of `GenerationSettings` that differ from the run's, such as `num_beams=3`; and `seed` of
                drawn captions (`candidates`).

        Raises:
            UserError: an image cannot be read.
        """
        if isinstance(images, str | Path | Image.Image):
            return next(self.stream([images], batch_size=1, **settings))
        return list(self.stream(images, batch_size=batch_size, **settings))

    def stream(self, images: Sequence[ImageLike], *, batch_size: int = 16, **settings: Any) -> Iterator[str]:
        """Like `caption`, one text after the other as they are ready."""
        if "num_captions" in settings:
            raise UserError("num_captions: one caption an image is written here; candidates() gives several")
        for captions in self.candidates(images, batch_size=batch_size, num_captions=1, **settings):
            yield captions[0]

    def candidates(
        self, images: Sequence[ImageLike], *, batch_size: int = 16, seed: int = 0, **settings: Any
    ) -> Iterator[list[str]]:
        """`num_captions` captions for each image, best first; drawn ones (`use_nucleus_sampling`) have no order.

        Args:
            images: paths or PIL images.
            batch_size: images encoded at a time.
            seed: of drawn captions. With the same seed an image gets the same ones, whatever is beside or before it;
                another seed gives others.
            settings: fields of `GenerationSettings` that differ from the run's.

        Raises:
            UserError: an image cannot be read, or `num_captions` is more than `num_beams`.
        """
        chosen = replace(self.settings, **settings)
        for start in range(0, len(images), batch_size):
            batch = [
                self.processors.evaluated(image if isinstance(image, Image.Image) else user_path(image))
                for image in images[start : start + batch_size]
            ]
            generators = None
            if chosen.use_nucleus_sampling:
                generators = [seeded(seed, _number_of(pixels)) for pixels in batch]
            with autocast(self.model.device, self.amp):
                written = self.model.generate(torch.stack(batch).to(self.model.device), chosen, generators)
            yield from written


def _number_of(pixels: Tensor) -> int:
    """Return a number that equal images share."""
    return int.from_bytes(hashlib.blake2b(pixels.numpy().tobytes(), digest_size=8).digest())
