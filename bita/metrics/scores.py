"""The result of scoring: values for the whole set and for each image, and what they were made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bita.records import Id

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """What one scorer found.

    Attributes:
        values: metric → value of the whole set, values of the images in the order of their ids (None: none there).
        statistics: what sums over images to the value of a set, where that is not a mean over images.
        of_set: what the hypotheses are like among themselves, name → value.
        made_with: what two results must share beside the usual to be compared.
    """

    values: dict[str, tuple[float, Sequence[float | None]]] = field(default_factory=dict)
    statistics: dict[str, Array] = field(default_factory=dict)
    of_set: dict[str, float] = field(default_factory=dict)
    made_with: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Scores of one set of hypotheses.

    Attributes:
        overall: metric → value, on the scale of pycocoevalcap (BLEU, METEOR, ROUGE-L 0 to 1, CIDEr 0 to 10).
        per_image: image id → metric → value.
        notes: what a reader of the numbers should know, one line each; empty when all went as usual.
        provenance: versions, hashes and counts that two results must share to be compared.
        statistics: scorer → (images, columns), images in the order of `per_image`; sums over images give the score of
            a set (`bita.metrics.stats`).
        diversity: what the hypotheses are like among themselves (`bita.metrics.diversity`).
    """

    overall: dict[str, float]
    per_image: dict[Id, dict[str, float]]
    notes: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Array] = field(default_factory=dict, repr=False, compare=False)
    diversity: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a dictionary for a JSON file; image ids become strings, as JSON has it."""
        per_image = {str(image_id): values for image_id, values in self.per_image.items()}
        return {
            "overall": self.overall,
            "per_image": per_image,
            "diversity": dict(self.diversity),
            "notes": self.notes,
            "provenance": self.provenance,
        }
