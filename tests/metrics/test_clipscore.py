"""CLIPScore against the sum written out, on ten images."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from bita.metrics.clipscore import clip_score, model_clip_score, ref_clip_score


def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(10, 4, 6, generator=generator), dim=-1)
    texts = F.normalize(torch.randn(10, 6, generator=generator), dim=-1)
    images[3] = -texts[3]
    return images, texts


def by_hand(images: torch.Tensor, text: torch.Tensor) -> float:
    cosines = [
        math.fsum(a * b for a, b in zip(query, text.tolist(), strict=True))
        / math.sqrt(math.fsum(a * a for a in query) * math.fsum(b * b for b in text.tolist()))
        for query in images.tolist()
    ]
    return 2.5 * max(0.0, max(cosines))


def test_ten_images() -> None:
    images, texts = features()
    expected = [by_hand(image, text) for image, text in zip(images, texts, strict=True)]
    assert clip_score(images, texts).tolist() == pytest.approx(expected, abs=1e-6)
    assert expected[3] == 0.0


def test_with_references() -> None:
    images, texts = features()
    references = [texts[n : n + 1].roll(n, dims=1) for n in range(10)]
    plain = clip_score(images, texts)
    found = ref_clip_score(images, texts, references)
    near = float(references[5][0] @ texts[5])
    expected = 2 * float(plain[5]) * near / (float(plain[5]) + near) if near > 0 else 0.0
    assert float(found[5]) == pytest.approx(expected, abs=1e-6)
    assert float(found[0]) == pytest.approx(2 * float(plain[0]) / (float(plain[0]) + 1), abs=1e-6)
    assert float(found[3]) == 0.0


def test_model_takes_images_and_captions() -> None:
    class Model:
        """Answers with the features of the numbers that the captions are."""

        def image_features(self, images: torch.Tensor) -> torch.Tensor:
            return features()[0][: len(images)]

        def tokenize(self, texts: list[str]) -> torch.Tensor:
            return torch.tensor([int(text) for text in texts])

        def text_features(self, ids: torch.Tensor) -> torch.Tensor:
            return features()[1][ids]

    found = model_clip_score(Model(), torch.zeros(2, 3, 4, 4), ["1", "0"])  # type: ignore[arg-type]
    images, texts = features()
    assert found.tolist() == clip_score(images[:2], texts[[1, 0]]).tolist()
