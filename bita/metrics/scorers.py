"""References and hypotheses → scores: pycocoevalcap's arithmetic, one metric at a time.

with CaptionScorer() as scorer:
    scores = scorer.score({1: ["a river"], 2: ["two planes", "planes"]}, {1: "a river", 2: "a plane"})
scores.overall["CIDEr"]
"""

from __future__ import annotations

import math
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from bita.metrics.checks import check_ids, named
from bita.metrics.diversity import diversity
from bita.metrics.java import find_java
from bita.metrics.meteor import Meteor, additive
from bita.metrics.paraphrases import cut_table, full_table
from bita.metrics.provenance import provenance
from bita.metrics.references import ReferenceSet, references_hash
from bita.metrics.scores import Measured, Scores
from bita.metrics.spice import missing_note, spice
from bita.metrics.tokenizer import Tokenizer
from bita.records import Id, K, ordered

Hypotheses = dict[Id, str]
"""Image id → tokenized caption, ids ascending."""

KEPT_SETS = 4


class CaptionScorer:
    """Scores sets of hypotheses; the second set for the same references takes a fraction of the first one's time.

    Kept from one set to the next: tokens, CIDEr's and BLEU's side of the references, METEOR's cut paraphrase table
    (in a temporary folder), a live METEOR process and its answers.

    Args:
        spice_dir: folder with SPICE's two CoreNLP jars; None, or jars missing: SPICE is not computed.
        meteor: the METEOR process to ask; None makes one.
    """

    def __init__(self, *, spice_dir: Path | None = None, meteor: Meteor | None = None) -> None:
        self.spice_dir = spice_dir
        self.meteor = meteor or Meteor()
        self.tokenizer = Tokenizer()
        self._sets: OrderedDict[str, ReferenceSet] = OrderedDict()
        self._tables: list[tuple[frozenset[str], Path]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the METEOR process and remove temporary files; the next scoring makes new ones."""
        self.meteor.close()
        self._tables.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def score(self, references: Mapping[K, Sequence[str]], hypotheses: Mapping[K, str]) -> Scores:
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
        check_ids(references, hypotheses)
        refs = self.references(references)
        tokens = self.tokenizer.tokenize([hypotheses[image_id] for image_id in ordered(hypotheses)])
        hyps = dict(zip(refs.ids, tokens, strict=True))
        empty = [image_id for image_id, text in hyps.items() if not text]
        notes = [*refs.notes, *_metric_notes(refs, empty)]
        scores = Scores({}, {image_id: {} for image_id in refs.ids}, notes, provenance(java, refs))
        scores.diversity.update(diversity(tokens))
        for name, answer in self._compute(refs, hyps).items():
            if isinstance(answer, Exception):
                said = " ".join(str(answer).split())
                notes.append(f"{name}: not computed; {type(answer).__name__}: {said}")
            else:
                _enter(answer, refs.ids, scores)
        note = missing_note(self.spice_dir)
        if note is not None:
            notes.append(note)
        return scores

    def _compute(self, refs: ReferenceSet, hyps: Hypotheses) -> dict[str, Measured | Exception]:
        """Every metric's values, or what it ran into; METEOR works in its own process beside the others."""
        metrics: dict[str, Callable[[ReferenceSet, Hypotheses], Measured]] = {
            "Bleu": _bleu,
            "METEOR": self._meteor,
            "ROUGE_L": _rouge,
            "CIDEr": _cider,
        }
        if self.spice_dir is not None and missing_note(self.spice_dir) is None:
            metrics["SPICE"] = partial(spice, self.spice_dir)
        with ThreadPoolExecutor(1) as pool:
            meteor = pool.submit(_attempt, self._meteor, refs, hyps)
            answers = {
                name: _attempt(metric, refs, hyps) if name != "METEOR" else None
                for name, metric in metrics.items()
            }
            return {name: meteor.result() if answer is None else answer for name, answer in answers.items()}

    def references(self, references: Mapping[K, Sequence[str]]) -> ReferenceSet:
        """The set, one of those kept or a new one.

        Raises:
            UserError: an image has no reference with a word; no Java; the tokenizer failed.
        """
        digest = references_hash(references)
        if digest not in self._sets:
            self._sets[digest] = ReferenceSet(references, self.tokenizer)
            if len(self._sets) > KEPT_SETS:
                self._sets.popitem(last=False)
        self._sets.move_to_end(digest)
        return self._sets[digest]

    def _meteor(self, refs: ReferenceSet, hyps: Hypotheses) -> Measured:
        new = [(image_id, text) for image_id, text in hyps.items() if (image_id, text) not in refs.meteor]
        self.meteor.use(self._table(refs))
        answers = self.meteor.statistics([(refs.distinct[image_id], text) for image_id, text in new])
        refs.meteor.update(zip(new, answers, strict=True))
        lines = [refs.meteor[pair] for pair in hyps.items()]
        return Measured({"METEOR": self.meteor.scores(lines)}, {"METEOR": additive(lines)})

    def _table(self, refs: ReferenceSet) -> Path:
        """A paraphrase table cut to these captions, or to more than these, which does as well."""
        captions = frozenset(text for texts in refs.tokens.values() for text in texts)
        for known, table in self._tables:
            if captions <= known:
                return table
        try:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="bita_meteor_")
            folder = Path(tempfile.mkdtemp(dir=self._folder.name))
            self._tables.append((captions, cut_table(find_java(), captions, folder)))
        except OSError:  # nowhere to put it, or no space: the whole table gives the same scores
            return full_table()
        return self._tables[-1][1]


def _attempt(
    metric: Callable[[ReferenceSet, Hypotheses], Measured], refs: ReferenceSet, hyps: Hypotheses
) -> Measured | Exception:
    """The metric's values, or the exception: whatever one metric runs into, the others are still worth having."""
    try:
        measured = metric(refs, hyps)
        for name, (whole, each) in measured.values.items():
            if not all(math.isfinite(value) for value in (whole, *each) if value is not None):
                raise ValueError(f"{name} is not a number")
    except Exception as error:
        return error
    return measured


def _enter(measured: Measured, ids: Sequence[Id], scores: Scores) -> None:
    """Put a metric's values where they belong."""
    scores.statistics.update(measured.statistics)
    for name, (whole, each) in measured.values.items():
        scores.overall[name] = float(whole)
        if not measured.statistics:
            scores.statistics[name] = np.array(
                [[value or 0.0, value is not None] for value in each], np.float64
            )
        lacking = [image_id for image_id, value in zip(ids, each, strict=True) if value is None]
        if lacking:
            scores.notes.append(
                f"{name}: none for {named(lacking, len(ids), 'image')}; the mean leaves them out"
            )
        for image_id, value in zip(ids, each, strict=True):
            if value is not None:
                scores.per_image[image_id][name] = float(value)


def _metric_notes(refs: ReferenceSet, empty: Sequence[Id]) -> list[str]:
    notes = []
    if empty:
        notes.append(f"{named(empty, len(refs.ids), 'hypothesis')} without a word, scored 0")
    if len(refs.ids) == 1:
        notes.append("CIDEr of a single image is 0 by definition: it weighs words against other images")
    return notes


def _bleu(refs: ReferenceSet, hyps: Hypotheses) -> Measured:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer, cook_test

    scorer = BleuScorer(n=4)
    scorer.crefs = refs.bleu
    scorer.ctest = [cook_test(text, cooked) for text, cooked in zip(hyps.values(), refs.bleu, strict=True)]
    whole, each = scorer.compute_score(option="closest", verbose=0)
    statistics = [
        [*of_image["correct"], *of_image["guess"], of_image["testlen"], _closest(of_image)]
        for of_image in scorer.ctest
    ]
    values = {f"Bleu_{n + 1}": (whole[n], each[n]) for n in range(4)}
    return Measured(values, {"Bleu": np.array(statistics, np.float64)})


def _closest(of_image: Mapping[str, Any]) -> int:
    """The reference length nearest to the hypothesis's, the shorter of two as near."""
    length: int = of_image["testlen"]
    lengths: list[int] = of_image["reflen"]
    return min(lengths, key=lambda reference: (abs(reference - length), reference))


def _rouge(refs: ReferenceSet, hyps: Hypotheses) -> Measured:
    from pycocoevalcap.rouge.rouge import Rouge

    whole, each = Rouge().compute_score(refs.distinct, {image_id: [text] for image_id, text in hyps.items()})
    return Measured({"ROUGE_L": (whole, each)})


def _cider(refs: ReferenceSet, hyps: Hypotheses) -> Measured:
    return Measured({"CIDEr": refs.cider.score(list(hyps.values()))})


@cache
def _shared() -> CaptionScorer:
    return CaptionScorer()


def score_captions(
    references: Mapping[K, Sequence[str]], hypotheses: Mapping[K, str], *, spice_dir: Path | None = None
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
