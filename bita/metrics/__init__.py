"""Scores of captions: BLEU, METEOR, ROUGE-L, CIDEr and, where its files are there, SPICE.

from bita.metrics import score_captions
scores = score_captions({1: ["a river in a forest"]}, {1: "a river"})
scores.overall["METEOR"], scores.per_image[1], scores.notes, scores.provenance
"""

from bita.metrics.scorers import CaptionScorer, score_captions
from bita.metrics.scores import Scores

__all__ = ["CaptionScorer", "Scores", "score_captions"]
