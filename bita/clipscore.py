"""CLIPScore: how well a caption fits its image in the eyes of a stage-1 model, without references or with them.

Hessel et al., "CLIPScore: a reference-free evaluation metric for image captioning", EMNLP 2021. An image here has one
vector for each query; as in training, the query that fits the text best counts. The values depend on the model:
they rank captions under one model, and say nothing across models.

Shapes: N images, Q query tokens, E embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bita.build import build_model
from bita.datasets.builders import processors_of
from bita.distributed import setup
from bita.errors import UserError
from bita.export import config_of, meta_of
from bita.metrics.checks import named
from bita.metrics.scores import Scores
from bita.models.bita_itc import BitaITC
from bita.records import Id

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


class ClipScorer:
    """A run's own stage-1 model, with its processors, that scores captions of image files.

    Args:
        run: what `bita.load` takes, of a stage-1 run.

    Attributes:
        digests: file of weights → sha256; scores of two models are not comparable.

    Raises:
        UserError: there is no such run, or it is not one of stage 1.
    """

    def __init__(self, run: str | Path) -> None:
        cfg = config_of(run)
        model = build_model(cfg.model)
        if not isinstance(model, BitaITC):
            raise UserError(f"{run}: writes captions; CLIPScore needs a run of stage 1, which aligns")
        self.model = model.place(setup("auto")).eval()
        self.processors = processors_of(cfg)
        self.digests = {
            file: str(entry["sha256"])
            for file, entry in meta_of(cfg).files.items()
            if file.startswith("model")
        }

    @torch.no_grad()
    def score(
        self, images: Sequence[Path], captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> Tensor:
        """CLIPScore and RefCLIPScore of N captions: (N, 2) float64, on the CPU."""
        found: list[Tensor] = []
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            pixels = torch.stack([self.processors.evaluated(path) for path in images[part]])
            seen = self.model.image_features(pixels.to(self.model.device))
            own, others = self._features(captions[part]), references[part]
            said = self._features([text for texts in others for text in texts]).split(list(map(len, others)))
            found.append(
                torch.stack([clip_score(seen, own), ref_clip_score(seen, own, list(said))], dim=1).cpu()
            )
        return torch.cat(found).double()

    def _features(self, texts: Sequence[str]) -> Tensor:
        return self.model.text_features(
            self.model.tokenize([self.processors.eval_text(text) for text in texts])
        )

    def add_to(
        self,
        scores: Scores,
        images: Mapping[Id, Path],
        hypotheses: Mapping[Id, str],
        references: Mapping[Id, Sequence[str]],
    ) -> None:
        """Add CLIPScore and RefCLIPScore to scores, overall and for every image.

        Args:
            scores: of the same images; gets the values, and the model's hashes among what it was made with.
            images: image id → file.
            hypotheses: image id → caption.
            references: image id → captions.

        Raises:
            UserError: an image has no file, or it does not open.
        """
        ids = list(scores.per_image)
        lacking = [n for n in ids if n not in images]
        if lacking:
            raise UserError(f"CLIPScore: {named(lacking, len(ids), 'image')} without file")
        found = self.score(
            [images[n] for n in ids], [hypotheses[n] for n in ids], [references[n] for n in ids]
        )
        for metric, values in zip(("CLIPScore", "RefCLIPScore"), found.T, strict=True):
            scores.overall[metric] = float(values.mean())
            scores.statistics[metric] = torch.stack([values, torch.ones_like(values)], dim=1).numpy()
            for n, value in zip(ids, values.tolist(), strict=True):
                scores.per_image[n][metric] = value
        scores.provenance["clip_model"] = self.digests
