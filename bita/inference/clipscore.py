"""CLIPScore: how well a caption fits its image in the eyes of a stage-1 model, without references or with them.

Hessel et al., "CLIPScore: a reference-free evaluation metric for image captioning", EMNLP 2021. An image here has one
vector for each query; as in training, the query that fits the text best counts. The values depend on the model:
they rank captions under one model, and say nothing across models.

Shapes: N images, Q query tokens, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bita.config.parts import ClipConfig
from bita.errors import UserError
from bita.inference.aligner import Aligner
from bita.metrics.checks import named
from bita.metrics.metric import Hypotheses, Metric
from bita.metrics.references import ReferenceSet
from bita.metrics.scores import Measured

SCALE = 2.5
BATCH = 32


def clip_score(images: Tensor, texts: Tensor) -> Tensor:
    """2.5 · max(0, best query's cosine) for each pair: (N,).

    Args:
        images: (N, Q, E), unit length.
        texts: (N, E), unit length.
    """
    best = torch.einsum("nqe,ne->nq", images, texts).amax(dim=1)
    return SCALE * best.clamp(min=0)


def ref_clip_score(images: Tensor, texts: Tensor, references: list[Tensor]) -> Tensor:
    """Harmonic mean of CLIPScore and the caption's best cosine with a reference, 0 at least: (N,).

    Args:
        images: (N, Q, E), unit length.
        texts: (N, E), unit length.
        references: N tensors (R, E) of unit length, R references of that image.
    """
    score = clip_score(images, texts)
    near = torch.stack(
        [(own @ text).amax().clamp(min=0) for own, text in zip(references, texts, strict=True)]
    )
    total = score + near
    return torch.where(total > 0, 2 * score * near / total.clamp(min=1e-12), torch.zeros_like(total))


class ClipScorer(Aligner):
    """A run's own stage-1 model, with its processors, that scores captions of image files."""

    @torch.no_grad()
    def clip_scores(
        self, images: Sequence[Path], captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> Tensor:
        """CLIPScore and RefCLIPScore of N captions: (N, 2) float64, on the CPU."""
        found: list[Tensor] = []
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            pixels = torch.stack([self.processors.evaluated(path) for path in images[part]])
            seen = self.embed_pixels(pixels)
            own, others = self.embed_texts(captions[part]), references[part]
            said = self.embed_texts([text for texts in others for text in texts]).split(
                list(map(len, others))
            )
            found.append(
                torch.stack([clip_score(seen, own), ref_clip_score(seen, own, list(said))], dim=1).cpu()
            )
        return torch.cat(found).double()


class ClipMetric(Metric):
    """CLIPScore and RefCLIPScore of captions whose images' files are known; `run` is its own key."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config)
        self.scorer = ClipScorer(config.run)

    def __call__(self, references: ReferenceSet, hypotheses: Hypotheses) -> Measured:
        """See `Metric.__call__`; the model's hashes are among what the scores were made with.

        Raises:
            UserError: an image has no file, or it does not open.
        """
        ids = references.ids
        lacking = [n for n in ids if n not in hypotheses.images]
        if lacking:
            raise UserError(f"CLIPScore: {named(lacking, len(ids), 'image')} without file")
        found = self.scorer.clip_scores(
            [hypotheses.images[n] for n in ids],
            [hypotheses.given[n] for n in ids],
            [references.given[n] for n in ids],
        )
        values = {
            name: (float(column.mean()), column.tolist())
            for name, column in zip(self.config.scores, found.T, strict=True)
        }
        return Measured(values, made_with={"clip_model": self.scorer.digests})
