"""References and hypotheses → scores: pycocoevalcap's arithmetic, one metric at a time.

scorer = CaptionScorer()
scores = scorer.score({1: ["a river"], 2: ["two planes", "planes"]}, {1: "a river", 2: "a plane"})
scores.overall["CIDEr"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from bita.metrics.checks import check_ids, named
from bita.metrics.java import find_java
from bita.metrics.meteor import Meteor
from bita.metrics.provenance import provenance, references_hash
from bita.metrics.scores import Scores
from bita.metrics.spice import missing_note
from bita.metrics.tokenizer import Tokenizer, clean

Values = dict[str, tuple[float, Sequence[float]]]
"""Metric → value of the whole set, values of the images in order."""
Tokens = dict[int, list[str]]


class CaptionScorer:
    """Scores sets of hypotheses; keeps tokens and a live METEOR process from one set to the next.

    Args:
        spice_dir: folder with SPICE's two CoreNLP jars; None, or jars missing: SPICE is not computed.
        meteor: the METEOR process to ask; None makes one.
    """

    def __init__(self, *, spice_dir: Path | None = None, meteor: Meteor | None = None) -> None:
        self.spice_dir = spice_dir
        self.tokenizer = Tokenizer()
        self.meteor = meteor or Meteor()

    def score(self, references: Mapping[int, Sequence[str]], hypotheses: Mapping[int, str]) -> Scores:
        """Score one hypothesis for each image.

        An empty hypothesis scores 0 everywhere, and references without a word are left out; both are noted. A
        metric that fails is left out of the scores, with a note that says why.

        Args:
            references: image id → its captions, at least one with a word.
            hypotheses: image id → one caption.

        Raises:
            UserError: ids do not fit (missing, unknown, without references), no Java, tokenizer failed.
        """
        java = find_java()
        ids = check_ids(references, hypotheses)
        notes: list[str] = []
        refs, hyps = self._tokens(ids, references, hypotheses, notes)
        metrics: dict[str, Callable[[Tokens, Tokens], Values]] = {
            "Bleu": _bleu,
            "METEOR": self._meteor,
            "ROUGE_L": _rouge,
            "CIDEr": _cider,
        }
        overall: dict[str, float] = {}
        per_image: dict[int, dict[str, float]] = {image_id: {} for image_id in ids}
        for name, metric in metrics.items():
            try:
                values = metric(refs, hyps)
            except Exception as error:  # whatever one metric runs into, the others are still worth having
                notes.append(f"{name}: not computed; {type(error).__name__}: {' '.join(str(error).split())}")
                continue
            for key, (whole, each) in values.items():
                overall[key] = float(whole)
                for image_id, value in zip(ids, each, strict=True):
                    per_image[image_id][key] = float(value) if hyps[image_id][0] else 0.0
        note = missing_note(self.spice_dir)
        if note is not None:
            notes.append(note)
        return Scores(overall, per_image, notes, provenance(java, references, references_hash(references)))

    def close(self) -> None:
        """End the METEOR process; the next scoring starts another."""
        self.meteor.close()

    def _tokens(
        self,
        ids: Sequence[int],
        references: Mapping[int, Sequence[str]],
        hypotheses: Mapping[int, str],
        notes: list[str],
    ) -> tuple[Tokens, Tokens]:
        """Tokens of references and of hypotheses (a list of one each), ids ascending."""
        pairs = [(image_id, text) for image_id in ids for text in references[image_id] if clean(text)]
        refs: Tokens = {image_id: [] for image_id in ids}
        for (image_id, _), tokens in zip(
            pairs, self.tokenizer.tokenize([text for _, text in pairs]), strict=True
        ):
            refs[image_id].append(tokens)
        tokens_of_hypotheses = self.tokenizer.tokenize([hypotheses[image_id] for image_id in ids])
        hyps: Tokens = {image_id: [t] for image_id, t in zip(ids, tokens_of_hypotheses, strict=True)}
        empty = [image_id for image_id in ids if not hyps[image_id][0]]
        if empty:
            notes.append(f"{named(empty, len(ids), 'hypothesis')} without a word, scored 0")
        return refs, hyps

    def _meteor(self, refs: Tokens, hyps: Tokens) -> Values:
        statistics = self.meteor.statistics([(refs[image_id], hyps[image_id][0]) for image_id in refs])
        return {"METEOR": self.meteor.scores(statistics)}


def _bleu(refs: Tokens, hyps: Tokens) -> Values:
    from pycocoevalcap.bleu.bleu import Bleu

    whole, each = Bleu(4).compute_score(refs, hyps, verbose=0)
    return {f"Bleu_{n + 1}": (whole[n], each[n]) for n in range(4)}


def _rouge(refs: Tokens, hyps: Tokens) -> Values:
    from pycocoevalcap.rouge.rouge import Rouge

    return {"ROUGE_L": Rouge().compute_score(refs, hyps)}


def _cider(refs: Tokens, hyps: Tokens) -> Values:
    from pycocoevalcap.cider.cider import Cider

    return {"CIDEr": Cider().compute_score(refs, hyps)}


@cache
def _shared() -> CaptionScorer:
    return CaptionScorer()


def score_captions(
    references: Mapping[int, Sequence[str]], hypotheses: Mapping[int, str], *, spice_dir: Path | None = None
) -> Scores:
    """Score one hypothesis for each image, with the scorer that the whole program shares (`CaptionScorer.score`).

    Args:
        references: image id → its captions.
        hypotheses: image id → one caption.
        spice_dir: folder with SPICE's two CoreNLP jars.

    Raises:
        UserError: ids do not fit, no Java, or the tokenizer failed.
    """
    scorer = _shared()
    scorer.spice_dir = spice_dir
    return scorer.score(references, hypotheses)
