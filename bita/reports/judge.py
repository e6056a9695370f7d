"""Captions of a split, judged: scores with intervals, what they are like, what they invent, what they copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bita import registry
from bita.config.schema import Config
from bita.datasets.synthetic import score_facts
from bita.metrics import Scores, score_captions
from bita.metrics.diversity import diversity
from bita.metrics.hallucination import Invented, Vocabulary, invented
from bita.metrics.scorers import USUAL
from bita.metrics.stats import Interval, intervals
from bita.metrics.tokenizer import Tokenizer
from bita.records import Id
from bita.reports.split import Captions, Split


@dataclass(frozen=True)
class Judged:
    """Captions and what they came to.

    Attributes:
        name: whose captions they are.
        captions: image id → caption.
        scores: by the metrics of the run, the usual ones and `invented`.
        intervals: metric → value with bounds of 95%.
        invented: what they name that no reference does.
        copied: image id → whether its caption stands in the training split, token by token; {} where that is not known.
        facts: of the synthetic dataset: fact → share of captions that state it rightly.
    """

    name: str
    captions: Captions
    scores: Scores
    intervals: dict[str, Interval]
    invented: Invented
    copied: dict[Id, bool]
    facts: dict[str, float]

    @property
    def usual(self) -> dict[str, float]:
        """The scores of the usual metrics."""
        names = {score for metric in USUAL for score in registry.metrics.config(metric).scores or ()}
        return {name: value for name, value in self.scores.overall.items() if name in names}


class Judge:
    """Judges sets of captions of one split.

    Args:
        split: references and training captions.
        cfg: of the run, whose metrics are computed beside the usual ones.
    """

    def __init__(self, split: Split, cfg: Config) -> None:
        self.split, self.spice_dir = split, split.spice_dir
        wanted = {name: registry.metrics.config(name)() for name in (*USUAL, "invented")}
        self.metrics: dict[str, Any] = wanted | cfg.run.metrics
        self._tokenizer = Tokenizer()
        self._vocabulary: Vocabulary = registry.metrics.get("invented")(self.metrics["invented"]).vocabulary
        self._training = set(self._tokenizer.tokenize([record.caption for record in split.training]))

    def __call__(self, name: str, captions: Captions) -> Judged:
        """Score captions of every image of the split."""
        split = self.split
        scores = score_captions(
            split.references, captions, spice_dir=self.spice_dir, metrics=self.metrics, images=split.images
        )
        tokens = dict(zip(captions, self._tokenizer.tokenize(captions.values()), strict=True))
        return Judged(
            name,
            captions,
            scores,
            intervals(scores),
            self._invented({n: split.references[n] for n in captions}, captions),
            {n: text in self._training for n, text in tokens.items()} if self._training else {},
            score_facts(captions, split.facts) if split.facts is not None else {},
        )

    def people(self) -> tuple[dict[str, float], Invented | None, float | None]:
        """Return what each image's first reference is like.

        Returns:
            Variety; what it invents by the others of its image, None where no image has others; the share that stands
            in the training split, None where that is not known.
        """
        references = self.split.references
        tokens = self._tokenizer.tokenize([texts[0] for texts in references.values()])
        copied = sum(text in self._training for text in tokens) / max(len(tokens), 1)
        several = {n: texts for n, texts in references.items() if len(texts) > 1}
        found = self._invented(
            {n: texts[1:] for n, texts in several.items()}, {n: texts[0] for n, texts in several.items()}
        )
        return diversity(tokens), found if several else None, copied if self._training else None

    def _invented(self, references: dict[Id, list[str]], captions: Captions) -> Invented:
        tokens = {n: self._tokenizer.tokenize(texts) for n, texts in references.items()}
        own = dict(zip(captions, self._tokenizer.tokenize(captions.values()), strict=True))
        return invented(tokens, own, self._vocabulary)
