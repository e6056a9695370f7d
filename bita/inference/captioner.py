"""Captioning outside training: `bita.load(RUN).caption(images)`.

Shapes: N images, M texts, Q query tokens, E embedding width, S the processors' image size.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, get_args

import torch
from PIL import Image
from torch import Tensor

from bita.build import build_model
from bita.config.parts import Quantization
from bita.datasets.builders import processors_of
from bita.datasets.captions import seeded
from bita.distributed import setup
from bita.errors import UserError
from bita.export import config_of, hash_of
from bita.files import user_path
from bita.inference.aligner import Aligner, stage_1_of
from bita.inference.captions import Caption
from bita.models.language.generation import GenerationSettings
from bita.precision import autocast
from bita.registry import models

if TYPE_CHECKING:
    from bita.config.schema import Config

LOG = logging.getLogger(__name__)

ImageLike = str | Path | Image.Image
T = TypeVar("T")


class Captioner:
    """A trained captioning model with its processors and search settings; see `bita.load`.

    Attributes:
        model: on its device, in evaluation mode.
        settings: the search settings of its run; pass others to `caption`.
        processors: its run's; `processors.evaluated(image)` is what the model sees of an image.
        hash: of the model's weights, 16 hexadecimal digits; the same for every copy of the run.
    """

    def __init__(self, cfg: Config, device: str = "auto", stage1: str | Path | None = None) -> None:
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
        self.hash = hash_of(cfg)
        self._stage1 = stage_1_of(str(cfg.model.init_from)) if stage1 is None else stage1

    @classmethod
    def load(
        cls, run: str | Path, device: str = "auto", quantize: str = "none", stage1: str | Path | None = None
    ) -> Self:
        """See `bita.load`."""
        cfg = config_of(run)
        if quantize not in get_args(Quantization):
            raise UserError(f"quantize={quantize!r}: choose one of {', '.join(get_args(Quantization))}")
        if hasattr(cfg.model, "lm_quantize"):
            cfg.model.lm_quantize = quantize
        return cls(cfg, device, stage1)

    @cached_property
    def stage1(self) -> Aligner | None:
        """The stage-1 model that this one grew from, loaded when it is first asked for; None where there is none."""
        if self._stage1 is None:
            return None
        try:
            return Aligner(self._stage1, self.model.device.type)
        except UserError as error:
            LOG.warning("no image-text scores: %s", error)
            return None

    def caption(
        self, images: ImageLike | Sequence[ImageLike], *, batch_size: int = 16, **settings: Any
    ) -> Caption | list[Caption]:
        """Write a caption for an image (a path or a PIL image) or for each of several.

        Args:
            images: one image gives a record, a sequence gives a list of records.
            batch_size: images encoded at a time.
            settings: see `stream`.

        Raises:
            UserError: an image cannot be read.
        """
        if isinstance(images, str | Path | Image.Image):
            return next(self.stream([images], batch_size=1, **settings))
        return list(self.stream(images, batch_size=batch_size, **settings))

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = 16,
        seed: int = 0,
        score: bool = True,
        **settings: Any,
    ) -> Iterator[Caption]:
        """Like `caption`, one record after the other as they are ready; images may come as they are made.

        Args:
            images: paths or PIL images.
            batch_size: images encoded at a time.
            seed: of drawn captions. With the same seed an image gets the same ones, whatever is beside or before it;
                another seed gives others.
            score: also compare image and caption by the model's stage 1, where it has one.
            settings: fields of `GenerationSettings` that differ from the run's, such as `num_beams=3`,
                `num_captions=3`, `use_nucleus_sampling=True`.

        Raises:
            UserError: an image cannot be read, or `num_captions` is more than `num_beams`.
        """
        chosen = replace(self.settings, **settings)
        for batch in _batched(images, batch_size):
            opened = [image if isinstance(image, Image.Image) else user_path(image) for image in batch]
            pixels = torch.stack([self.processors.evaluated(image) for image in opened])
            yield from self._write(pixels, opened, chosen, seed, score)

    @torch.inference_mode()
    def _write(
        self,
        pixels: Tensor,
        images: Sequence[Path | Image.Image],
        settings: GenerationSettings,
        seed: int,
        score: bool,
    ) -> list[Caption]:
        generators = None
        if settings.use_nucleus_sampling:
            generators = [seeded(seed, _number_of(image)) for image in pixels]
        with autocast(self.model.device, self.amp):
            raw = self.model.raw_tokens(pixels.to(self.model.device))
            written = self.model.candidates(raw, settings, generators)
        scores: list[float | None] = [None] * len(written)
        if score and self.stage1 is not None:
            own = pixels
            if not self.stage1.sees_like(self.processors):
                own = torch.stack([self.stage1.processors.evaluated(image) for image in images])
            texts = self.stage1.embed_texts([captions[0].text for captions in written])
            scores = self.stage1.score(self.stage1.embed_pixels(own), texts).diagonal().tolist()
        return [
            Caption(
                caption=captions[0].text,
                candidates=[candidate.text for candidate in captions],
                log_probability=captions[0].log_probability,
                tokens=captions[0].tokens,
                score=similarity,
                model=self.hash,
            )
            for captions, similarity in zip(written, scores, strict=True)
        ]

    def embed_images(self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 16) -> Tensor:
        """N images → (N, Q, E) float32 of unit length, on the CPU: a vector for each query of the model's stage 1.

        Raises:
            UserError: the model has no stage 1, or an image cannot be read.
        """
        stage1 = self._aligner()
        if isinstance(images, str | Path | Image.Image):
            images = [images]
        parts = [
            stage1.embed_pixels(
                torch.stack(
                    [
                        stage1.processors.evaluated(
                            image if isinstance(image, Image.Image) else user_path(image)
                        )
                        for image in batch
                    ]
                )
            ).cpu()
            for batch in _batched(images, batch_size)
        ]
        if not parts:
            raise UserError("embed_images: no image given")
        return torch.cat(parts)

    def embed_texts(self, texts: str | Sequence[str]) -> Tensor:
        """M texts → (M, E) float32 of unit length, on the CPU.

        Raises:
            UserError: the model has no stage 1.
        """
        return self._aligner().embed_texts([texts] if isinstance(texts, str) else texts).cpu()

    def score(self, images: ImageLike | Iterable[ImageLike], texts: str | Sequence[str]) -> Tensor:
        """Cosine of each image's best query with each text: (N, M) float32.

        Raises:
            UserError: the model has no stage 1, or an image cannot be read.
        """
        return self._aligner().score(self.embed_images(images), self.embed_texts(texts))

    def _aligner(self) -> Aligner:
        if self.stage1 is None:
            raise UserError(
                "this model has no stage 1 to compare images and texts by; name its run: bita.load(…, stage1=RUN)"
            )
        return self.stage1


def _batched(images: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut into lists of `size`, the last one shorter."""
    rest = iter(images)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _number_of(pixels: Tensor) -> int:
    """Return a number that equal images share."""
    return int.from_bytes(hashlib.blake2b(pixels.numpy().tobytes(), digest_size=8).digest())
