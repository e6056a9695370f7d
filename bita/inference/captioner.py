"""Captioning outside training: `bita.load(RUN).caption(images)`.

Shapes: N images, M texts, Q query tokens, E embedding width, S the processors' image size.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from bita.build import build_model
from bita.config.parts import Quantization
from bita.datasets.builders import processors_of
from bita.datasets.captions import seeded
from bita.distributed import setup
from bita.errors import UserError
from bita.export import calibration_of, config_of, hash_of, stage_1_of
from bita.inference.aligner import Aligner, no_stage_1
from bita.inference.attention import CELLS, Look, look
from bita.inference.captions import Caption
from bita.inference.confidence import REFIT, Calibration
from bita.inference.views import ImageLike, Seen, View, as_images, opened, seen_ahead
from bita.models.language.generation import GenerationSettings
from bita.precision import autocast
from bita.registry import models, nearest

if TYPE_CHECKING:
    from bita.config.schema import Config

LOG = logging.getLogger(__name__)

T = TypeVar("T")


class Captioner:
    """A trained captioning model with its processors and search settings; see `bita.load`.

    Attributes:
        model: on its device, in evaluation mode.
        settings: the search settings of its run; pass others to `caption`.
        processors: its run's; `processors.evaluated(image)` is what the model sees of an image.
        hash: of the model's weights, 16 hexadecimal digits, the same for every copy of the run; of quantized weights
            followed by `-int8` or `-int4`.
        calibration: what confidence is worked out with; None where the run has none.
    """

    def __init__(
        self, cfg: Config, device: str = "auto", stage1: str | Path | None = None, prompt: str | None = None
    ) -> None:
        if prompt is not None:
            cfg.model.prompt = prompt
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
        self._view = View(self.processors)
        quantized = getattr(cfg.model, "lm_quantize", "none")
        self.hash = hash_of(cfg) + f"-{quantized}" * (quantized != "none")
        self.calibration, self._said = _calibration(cfg), set[str]()
        self._stage1 = stage_1_of(str(cfg.model.init_from)) if stage1 is None else stage1

    def __repr__(self) -> str:
        """Which model it is, and where."""
        return f"<{type(self).__name__} {self.hash} on {self.model.device}>"

    @classmethod
    def load(
        cls,
        run: str | Path,
        device: str = "auto",
        quantize: str = "none",
        stage1: str | Path | None = None,
        prompt: str | None = None,
    ) -> Self:
        """See `bita.load`, which says what it raises."""
        cfg = config_of(run)
        if quantize not in get_args(Quantization):
            raise UserError(f"quantize={quantize!r}: choose one of {', '.join(get_args(Quantization))}")
        if hasattr(cfg.model, "lm_quantize"):
            cfg.model.lm_quantize = quantize
        return cls(cfg, device, stage1, prompt)

    @cached_property
    def stage1(self) -> Aligner | None:
        """The stage-1 model that this one grew from, loaded when it is first asked for; None where there is none."""
        if self._stage1 is None:
            return None
        try:
            aligner = Aligner.of(self._stage1, self.model.device.type)
        except UserError as error:
            LOG.warning("no image-text scores: %s", error)
            return None
        self._one_view = aligner.sees_like(self.processors)
        self._one_encoder = self._one_view and aligner.share_encoder(self.model)
        return aligner

    def caption(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 16, **settings: Any
    ) -> Caption | list[Caption]:
        """Write a caption for an image or for each of several.

        Args:
            images: an image (`stream` says of which kinds) gives a record, several give a list of records.
            batch_size: images encoded at a time.
            settings: see `stream`.

        Raises:
            UserError: an image cannot be read.
        """
        several, one = as_images(images)
        records = list(self.stream(several, batch_size=batch_size, **settings))
        return records[0] if one else records

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

        Images are opened in threads, two batches ahead of the model; where that has all cores of a CPU, between its
        batches.

        Args:
            images: paths, PIL images, bytes of image files, arrays (H, W), (H, W, 3) or (H, W, bands), tensors
                (C, H, W), open rasters of rasterio or pairs (raster, window). All are opened as the run's own files
                are: 8-bit samples as they stand, others stretched, `bands` picked.
            batch_size: images encoded at a time.
            seed: of drawn captions. With the same seed an image gets the same ones, whatever is beside or before it;
                another seed gives others.
            score: also compare image and caption by the model's stage 1, where it has one.
            settings: fields of `GenerationSettings` that differ from the run's, such as `num_beams=3`,
                `num_captions=3`, `use_nucleus_sampling=True`.

        Raises:
            UserError: an image cannot be read, or `num_captions` is more than `num_beams`.
        """
        for record in self.results(images, batch_size=batch_size, seed=seed, score=score, **settings):
            if isinstance(record, UserError):
                raise record
            yield record

    def results(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = 16,
        seed: int = 0,
        score: bool = True,
        **settings: Any,
    ) -> Iterator[Caption | UserError]:
        """Like `stream`; what cannot be read gives its error in its place, and the others go on."""
        chosen = self._settings(batch_size, settings)
        self._say_other_search(chosen)
        views = [self._view]
        if score and self.stage1 is not None and not self._one_view:
            views.append(self.stage1.view)
        ahead = seen_ahead(as_images(images)[0], views, 2 * batch_size, self.model.device)
        for batch in batched(ahead, batch_size):
            seen = [image for image in batch if not isinstance(image, UserError)]
            written = iter(self._write(seen, chosen, seed, score) if seen else [])
            for image in batch:
                yield image if isinstance(image, UserError) else next(written)

    def _settings(self, batch_size: int, settings: dict[str, Any]) -> GenerationSettings:
        """Return the run's settings with these changes."""
        known = [field.name for field in fields(GenerationSettings)]
        for name in settings:
            if name not in known:
                raise UserError(f"{name}: unknown setting; {nearest(name, known)}, of {', '.join(known)}")
        if batch_size < 1:
            raise UserError(f"batch_size: must be at least 1, not {batch_size}")
        return replace(self.settings, **settings)

    def _say_other_search(self, settings: GenerationSettings) -> None:
        """Warn, once for each, of a search whose log-probabilities are not those that confidence was fitted to."""
        fitted = None if self.calibration is None else self.calibration.search
        if fitted is None or settings.use_nucleus_sampling:  # drawn captions have no confidence
            return
        now = settings.search()
        other = [
            f"{name} was {fitted[name]} and is {now[name]}"
            for name in fitted
            if fitted[name] != now.get(name)
        ]
        said = f"confidence was fitted to another search ({', '.join(other)}), so it is less sure ({REFIT})"
        if other and said not in self._said:
            self._said.add(said)
            LOG.warning("%s", said)

    @torch.inference_mode()
    def _write(
        self, seen: Sequence[Seen], settings: GenerationSettings, seed: int, score: bool
    ) -> list[Caption]:
        """Caption one batch."""
        device, own = self.model.device, [views[0] for views in seen]
        generators = None
        if settings.use_nucleus_sampling:
            on_cpu = self._view.batch(own, torch.device("cpu"))
            generators = [seeded(seed, _number_of(pixels)) for pixels in on_cpu]
        pixels = self._view.batch(own, device)
        with autocast(device, self.amp):
            raw = self.model.view_tokens(pixels, settings.views)
            written = self.model.candidates(raw, settings, generators)
        scores: list[float | None] = [None] * len(written)
        if score and self.stage1 is not None:
            texts = self.stage1.embed_texts([captions[0].text for captions in written])
            compared = self._compared(seen, pixels, raw[:: settings.views])  # the image as it is
            scores = self.stage1.score(compared, texts).diagonal().tolist()
        best = [captions[0] for captions in written]
        expected = self._confidence([caption.log_probability / len(caption.ids) for caption in best], scores)
        drawn = settings.use_nucleus_sampling
        return [
            Caption(
                caption=captions[0].text,
                candidates=[candidate.text for candidate in captions],
                log_probability=captions[0].log_probability,
                tokens=len(captions[0].ids),
                score=similarity,
                confidence=None if drawn else confidence,
                model=self.hash,
            )
            for captions, similarity, confidence in zip(written, scores, expected, strict=True)
        ]

    def _confidence(self, likelihood: list[float], scores: list[float | None]) -> Sequence[float | None]:
        """The quality to expect of captions, by the scores too where the calibration knows the model they are of."""
        if self.calibration is None:
            return [None] * len(likelihood)
        known = None not in scores and self.stage1 is not None and self.stage1.hash == self.calibration.stage1
        found = self.calibration.confidence(
            np.array(likelihood), np.array(scores, np.float64) if known else None
        )
        return [float(value) for value in found]

    def _compared(self, seen: Sequence[Seen], pixels: Tensor, raw: Tensor) -> Tensor:
        """Stage 1's vectors of a batch, from what the captioning model has already seen or encoded of it, if it may."""
        assert self.stage1 is not None
        if self._one_encoder:
            return self.stage1.embed_tokens(raw)
        if not self._one_view:
            pixels = self.stage1.view.batch([views[1] for views in seen], pixels.device)
        return self.stage1.embed_pixels(pixels)

    def embed_images(self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 16) -> Tensor:
        """N images → (N, Q, E) float32 of unit length, on the CPU: a vector for each query of the model's stage 1.

        Args:
            images: one or several, of the kinds that `stream` takes.
            batch_size: images encoded at a time.

        Raises:
            UserError: the model has no stage 1, or an image cannot be read.
        """
        stage1, parts = self._aligner(), []
        ahead = seen_ahead(as_images(images)[0], [stage1.view], 2 * batch_size, stage1.model.device)
        for batch in batched(ahead, batch_size):
            for image in batch:
                if isinstance(image, UserError):
                    raise image
            seen = [image[0] for image in batch if not isinstance(image, UserError)]
            parts.append(stage1.embed_pixels(stage1.view.batch(seen, stage1.model.device)).cpu())
        if not parts:
            raise UserError("embed_images: no image is given")
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

    def look(
        self,
        image: ImageLike,
        *,
        caption: str | Caption | None = None,
        occlusion: int = CELLS,
        batch_size: int = 16,
        **settings: Any,
    ) -> Look:
        """Find out where the model looks in an image for a caption, and for each of its words.

        Args:
            image: of the kinds that `stream` takes.
            caption: whose words are traced; None: the one that the model writes.
            occlusion: cells a side into which the image is cut, each of which is covered in turn; 0: none.
            batch_size: images with a covered cell encoded at a time.
            settings: see `stream`.

        Raises:
            UserError: the image cannot be read, the caption has no words, or the bridge no cross-attention.
        """
        chosen = self._settings(batch_size, settings)
        if occlusion < 0:
            raise UserError(f"occlusion: must be at least 0, not {occlusion}")
        shown = opened(image, self._view.opener)
        pixels = self._view.batch([self._view.of(shown)], self.model.device)[0]
        text = None if caption is None else str(caption)
        with autocast(self.model.device, self.amp):
            return look(
                self.model, shown, pixels, chosen, caption=text, occlusion=occlusion, batch_size=batch_size
            )

    def _aligner(self) -> Aligner:
        if self.stage1 is None:
            raise no_stage_1(f"model {self.hash}", "give bita.load(…, stage1=RUN)")
        return self.stage1


def _calibration(cfg: Config) -> Calibration | None:
    """Return what was fitted for these weights; what was fitted for others is not used, and said."""
    path = calibration_of(cfg)
    if path is None:
        return None
    calibration = Calibration.load(path)
    if calibration.model != hash_of(cfg):
        LOG.warning("%s: was fitted for other weights; captions have no confidence (%s)", path, REFIT)
        return None
    return calibration


def batched(images: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut into lists of `size`, the last one shorter."""
    rest = iter(images)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _number_of(pixels: Tensor) -> int:
    """Return a number that equal images share."""
    return int.from_bytes(hashlib.blake2b(pixels.numpy().tobytes(), digest_size=8).digest())
