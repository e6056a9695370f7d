"""Confidence: the quality to expect of a caption, from how likely its words were and how well it fits its image.

A caption's quality is its CIDEr-D against the image's references, over what a reference has in the mean against the
others of its image, 1 at most: 1 agrees with people as much as people agree among each other. An isotonic regression
(Zadrozny and Elkan 2002) of that on the validation split turns log-probability a token, or its sum with the image-text
score, into the quality to expect. A calibration is bound to the weights that it was fitted for.

Shapes: N captions.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bita.errors import UserError
from bita.files import write_json

LOG = logging.getLogger(__name__)
Values = npt.NDArray[np.float64]

BINS = 10
FOLDS = 5
LEAST = 20
"""Captions that a calibration is fitted to, at least."""
STEPS = 11
"""Shares of the image-text score that are tried, from none to nothing else."""
FORMAT = 1
REFIT = "scripts/calibrate.py, or bita-calibrate"


@dataclass(frozen=True)
class Curve:
    """A function that never falls: linear between its points, level outside them.

    Attributes:
        x: ascending.
        y: from 0 to 1, ascending.
    """

    x: list[float]
    y: list[float]

    def __call__(self, values: Values) -> Values:
        """Values of the function, (N,)."""
        return np.interp(values, self.x, self.y)

    @classmethod
    def fit(cls, x: Values, y: Values) -> Self:
        """The isotonic regression of `y` on `x` (N,); equal `x` count as one point."""
        from scipy.optimize import isotonic_regression

        points, place = np.unique(x, return_inverse=True)
        counts = np.bincount(place)
        fitted = isotonic_regression(np.bincount(place, weights=y) / counts, weights=counts).x
        inner = (np.diff(fitted, prepend=np.nan) != 0) | (np.diff(fitted, append=np.nan) != 0)
        return cls(points[inner].tolist(), fitted[inner].clip(0, 1).tolist())


@dataclass(frozen=True)
class Mix:
    """Log-probability a token and image-text score as one number: each over its deviation, then weighed.

    Attributes:
        share: of the score, from 0 to 1.
        center: means of both on the validation split.
        scale: their deviations.
    """

    share: float
    center: tuple[float, float]
    scale: tuple[float, float]

    def __call__(self, likelihood: Values, score: Values) -> Values:
        """The number (N,) of each caption."""
        parts = [
            (values - center) / scale
            for values, center, scale in zip((likelihood, score), self.center, self.scale, strict=True)
        ]
        return (1 - self.share) * parts[0] + self.share * parts[1]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a run's confidence is worked out with; kept as `calibration.json` in the run and in its export.

    Attributes:
        model: hash of the captioning model's weights.
        stage1: hash of the stage-1 model's; None where there was none.
        consensus: CIDEr-D (0 to 10) of a reference against the others of its image, the mean.
        captions: of the split that it was fitted to.
        split: how that is called.
        likelihood: from log-probability a token alone.
        mix: with `both`, the same from both; None without stage 1.
        search: how those captions were searched for (`GenerationSettings.search`); None in older files.
    """

    model: str
    stage1: str | None
    consensus: float
    captions: int
    split: str
    likelihood: Curve
    mix: Mix | None = None
    both: Curve | None = None
    search: dict[str, Any] | None = None

    @classmethod
    def fit(cls, likelihood: Values, score: Values | None, quality: Values, **about: Any) -> Self:
        """Fit to a split's captions.

        Args:
            likelihood: (N,) log-probability a token.
            score: (N,) image-text score.
            quality: (N,) from 0 to 1.
            about: the other fields.

        Raises:
            UserError: there are too few captions.
        """
        if len(quality) < LEAST:
            raise UserError(
                f"{len(quality)} captions are too few for a calibration; it takes {LEAST} at least"
            )
        alone = Curve.fit(likelihood, quality)
        if score is None:
            return cls(likelihood=alone, **about)
        mixes = [_mix(share, likelihood, score) for share in np.linspace(0, 1, STEPS)]
        losses = [
            float(np.mean((_held_out(mix(likelihood, score), quality) - quality) ** 2)) for mix in mixes
        ]
        best = mixes[int(np.argmin(losses))]
        return cls(likelihood=alone, mix=best, both=Curve.fit(best(likelihood, score), quality), **about)

    def confidence(self, likelihood: Values, score: Values | None) -> Values:
        """The quality to expect (N,) of captions by their log-probability a token and, where known, their scores."""
        if score is None or self.mix is None or self.both is None:
            return self.likelihood(likelihood)
        return self.both(self.mix(likelihood, score))

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, {"format": FORMAT} | asdict(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; raises UserError where it is something else."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError
            curves = {k: content.pop(k) for k in ("likelihood", "both")}
            mix = content.pop("mix")
            return cls(
                likelihood=Curve(**curves["likelihood"]),
                both=None if curves["both"] is None else Curve(**curves["both"]),
                mix=None if mix is None else Mix(mix["share"], tuple(mix["center"]), tuple(mix["scale"])),
                **content,
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{path}: is no calibration of this version; fit it again ({REFIT})") from None


def _mix(share: float, likelihood: Values, score: Values) -> Mix:
    both = (likelihood, score)
    low, high = (float(np.mean(values)) for values in both)
    return Mix(float(share), (low, high), (float(np.std(likelihood)) or 1.0, float(np.std(score)) or 1.0))


def _held_out(x: Values, y: Values) -> Values:
    """(N,) what a curve fitted to the other folds says of each caption; every k-th one is a fold."""
    fold = np.arange(len(x)) % FOLDS
    found = np.empty_like(x)
    for number in range(FOLDS):
        found[fold == number] = Curve.fit(x[fold != number], y[fold != number])(x[fold == number])
    return found


def uncalibrated(likelihood: Values) -> Values:
    """The geometric mean (N,) of a caption's token probabilities: confidence before calibration."""
    return np.exp(likelihood)


@dataclass(frozen=True)
class Bin:
    """Captions of a like confidence: how many, their mean confidence, their mean quality."""

    captions: int
    confidence: float
    quality: float


def reliability(confidence: Values, quality: Values, bins: int = BINS) -> list[Bin]:
    """Bins of equally many captions, by confidence (Nguyen and O'Connor 2015), for a reliability plot.

    Args:
        confidence: (N,) from 0 to 1.
        quality: (N,) from 0 to 1.
        bins: how many, at most one a caption.
    """
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, len(order))) if len(order) else []
    return [Bin(len(part), float(confidence[part].mean()), float(quality[part].mean())) for part in parts]


def expected_calibration_error(confidence: Values, quality: Values, bins: int = BINS) -> float:
    """Mean distance of confidence and quality over the bins of `reliability`, each caption counting once."""
    parts = reliability(confidence, quality, bins)
    return sum(part.captions * abs(part.confidence - part.quality) for part in parts) / max(1, len(quality))


def risk_coverage(confidence: Values, quality: Values) -> tuple[Values, Values]:
    """Mean quality of what is kept when only the most confident captions are (El-Yaniv and Wiener 2010).

    Captions of the same confidence are kept together: none of them comes first.

    Args:
        confidence: (N,).
        quality: (N,), on any scale.

    Returns:
        Coverage (K,), the share that is kept, ascending to 1, and the mean quality (K,) of what is.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    ends = np.flatnonzero(np.diff(ranked, append=-np.inf))
    kept = ends + 1.0
    return kept / len(order), np.cumsum(quality[order])[ends] / kept
