"""What is known of an image's caption: one typed record."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The caption of one image; `str(record)` is its text.

    Attributes:
        caption: the best candidate.
        candidates: all that were asked for (`num_captions`), best first; drawn ones have no order.
        log_probability: Σ log p of the caption's tokens, as the search adds them up (natural logarithm, 0 at most).
        tokens: how many these are, the one that ends the caption included.
        score: image-text similarity by the model's stage 1, a cosine from -1 to 1; None where there is no stage 1.
        confidence: the quality to expect, from 0 to 1, by the model's calibration; None where it has none.
        model: hash of the model's weights (`Captioner.hash`).
    """

    caption: str
    candidates: list[str]
    log_probability: float
    tokens: int
    score: float | None = None
    confidence: float | None = None
    model: str

    def __str__(self) -> str:
        return self.caption

    def _repr_html_(self) -> str:
        """Return the record as a small table, for notebooks."""
        rows = {
            "candidates": self.candidates[1:] and " · ".join(self.candidates[1:]),
            "log p / token": f"{self.log_probability / self.tokens:.3f}",
            "image-text score": self.score is not None and f"{self.score:.3f}",
            "confidence": self.confidence is not None and f"{self.confidence:.2f}",
        }
        cells = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in rows.items()
            if value
        )
        return f"<div><b>{escape(self.caption)}</b><table>{cells}</table></div>"
