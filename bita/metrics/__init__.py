"""Scores of captions: BLEU, METEOR, ROUGE-L, CIDEr and, where its files are there, SPICE.

    from bita.metrics import score_captions
    scores = score_captions({1: ["a river in a forest"], 2: ["two planes"]}, {1: "a river", 2: "planes"})
    scores.overall["METEOR"], scores.per_image[1], scores.notes, scores.provenance

Intervals, tests and scores of classes: `bita.metrics.stats`; variety: `bita.metrics.diversity`; a reference-free score
with a stage-1 model: `bita.inference.clipscore`; files: `python -m bita.metrics REFERENCES HYPOTHESES`.
"""

from bita.metrics.metric import Hypotheses, Metric
from bita.metrics.references import ReferenceSet
from bita.metrics.scorers import CaptionScorer, score_captions
from bita.metrics.scores import Measured, Scores

__all__ = ["CaptionScorer", "Hypotheses", "Measured", "Metric", "ReferenceSet", "Scores", "score_captions"]
