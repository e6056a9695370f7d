"""A stage-1 model at work: images and texts as vectors that can be compared.

Shapes: N images, M texts, Q query tokens, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from bita.build import build_model
from bita.datasets.builders import processors_of
from bita.datasets.captions import Processors
from bita.distributed import setup
from bita.errors import UserError
from bita.export import config_of, hash_of, meta_of, stage_1_of
from bita.inference.views import View
from bita.models.base import BitaModel
from bita.models.contrast import similarity
from bita.processors.image import EvalImageProcessor
from bita.registry import models

BATCH = 64
"""Texts embedded at a time."""


def no_stage_1(model: str, name: str) -> UserError:
    """Return what is said of a model that has no stage 1.

    Args:
        model: how the message calls it.
        name: how a run that has one is named to whoever asks.
    """
    return UserError(
        f"{model}: its stage 1, which compares images and texts, is not there; {name} a run that has one, such as "
        "the quickstart's (bash scripts/quickstart.sh makes output/quickstart/caption)"
    )


class Aligner:
    """A stage-1 run's model with its processors.

    Args:
        run: what `bita.load` takes, of a stage-1 run.
        device: `auto`, `cpu` or `cuda`.

    Attributes:
        hash: of the model's weights, 16 hexadecimal digits.
        digests: file of weights → sha256; similarities of two models are not comparable.

    Raises:
        UserError: there is no such run, or it is not one of stage 1.
    """

    def __init__(self, run: str | Path, device: str = "auto") -> None:
        cfg = config_of(run)
        model = build_model(cfg.model)
        if not model.aligns:
            raise UserError(
                f"{run}: aligns nothing, or writes captions; needed is a run of stage 1 with the loss itc"
            )
        self.model: Any = model.place(setup(device)).eval()
        self.processors = processors_of(cfg)
        self.view = View(self.processors)
        self.hash = hash_of(cfg)
        self.digests = {
            file: str(entry["sha256"])
            for file, entry in meta_of(cfg).files.items()
            if file.startswith("model")
        }

    @classmethod
    def of(cls, run: str | Path, device: str = "auto") -> Self:
        """Load a stage-1 run, or the one that a captioning run grew from.

        Raises:
            UserError: there is none.
        """
        cfg = config_of(run)
        if not models.config(cfg.model.arch).writes_captions:
            return cls(run, device)
        before = stage_1_of(str(cfg.model.init_from))
        if before is None:
            raise no_stage_1(str(run), "name")
        return cls(before, device)

    @torch.no_grad()
    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Processed images (N, 3, S, S) → (N, Q, E) float32, unit length, on the model's device."""
        return self.embed_tokens(self.model.raw_tokens(pixels.to(self.model.device)))

    @torch.no_grad()
    def embed_tokens(self, raw_tokens: Tensor) -> Tensor:
        """The same of what the encoder says of images."""
        return self.model.project(self.model.ln_vision(raw_tokens.float()))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """M texts → (M, E) float32, unit length, on the model's device."""
        processed = [self.processors.eval_text(text) for text in texts]
        parts = [
            self.model.text_features(self.model.tokenize(processed[start : start + BATCH]))
            for start in range(0, len(processed), BATCH)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, self.model.cfg.embed_dim)

    def score(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosine of the query that fits best, for each image (N, Q, E) and text (M, E): (N, M) float32."""
        return similarity(images, texts)

    def sees_like(self, other: Processors) -> bool:
        """Whether `other` makes the same pixels of an image as this model's own processors."""
        own, others = self.processors.eval_image, other.eval_image
        return (
            self.processors.eval_open == other.eval_open
            and type(own) is type(others) is EvalImageProcessor
            and own.image_size == others.image_size
            and torch.equal(own.mean, others.mean)
            and torch.equal(own.std, others.std)
        )

    def share_encoder(self, model: BitaModel) -> bool:
        """Take another model's image encoder in place of the own one, where they are equal; whether they are."""
        own, others = (encoder.state_dict() for encoder in (self.model.visual_encoder, model.visual_encoder))
        same = (
            self.model.cfg.encoder_settings() == model.cfg.encoder_settings()
            and list(own) == list(others)
            and all(
                own[name].dtype == others[name].dtype and torch.equal(own[name], others[name]) for name in own
            )
        )
        if same:
            self.model.visual_encoder = model.visual_encoder
        return same
