"""References and hypotheses → scores: pycocoevalcap's arithmetic, one metric at a time.

with CaptionScorer() as scorer:
    scores = scorer.score({1: ["a river"], 2: ["two planes", "planes"]}, {1: "a river", 2: "a plane"})
scores.overall["CIDEr"]
"""

from __future__ import annotations

import math
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from bita import registry
from bita.errors import UserError, one_line
from bita.metrics.checks import check_ids, named
from bita.metrics.diversity import diversity
from bita.metrics.java import find_java
from bita.metrics.meteor import Meteor, additive
from bita.metrics.metric import Hypotheses, Metric
from bita.metrics.paraphrases import cut_table, full_table
from bita.metrics.provenance import provenance
from bita.metrics.references import ReferenceSet, references_hash
from bita.metrics.scores import Measured, Scores
from bita.metrics.spice import missing_note, spice
from bita.metrics.tokenizer import Tokenizer
from bita.records import Id, K, ordered

KEPT_SETS = 4
USUAL = ("Bleu", "METEOR", "ROUGE_L", "CIDEr", "SPICE", "diversity")
"""The metrics that are computed unless others are asked for."""


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
        self.tokenizer = Tokenizer()
        self._sets: OrderedDict[str, ReferenceSet] = OrderedDict()
        self._metrics: dict[str, Metric] = {}
        if meteor is not None:
            config = registry.metrics.config("METEOR")()
            self._metrics[f"METEOR {config}"] = MeteorMetric(config, meteor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the METEOR process and remove temporary files; the next scoring makes new ones."""
        for metric in self._metrics.values():
            metric.close()

    def score(
        self,
        references: Mapping[K, Sequence[str]],
        hypotheses: Mapping[K, str],
        *,
        metrics: Mapping[str, Any] | None = None,
        images: Mapping[K, Path] | None = None,
    ) -> Scores:
        """Score one hypothesis for each image.

        An empty hypothesis scores 0 everywhere, and references without a word are left out; both are noted. A
        metric that fails is left out of the scores, with a note that says why.

        Args:
            references: image id → its captions, at least one with a word.
            hypotheses: image id → one caption.
            metrics: name in `bita.registry.metrics` → its own keys, an instance of its `Config`; None: the usual ones.
            images: image id → file, for metrics that look at images.

        Raises:
            UserError: ids do not fit (missing, unknown, without references), no Java, tokenizer failed.
        """
        java = find_java()
        check_ids(references, hypotheses)
        refs = self.references(references)
        tokens = self.tokenizer.tokenize([hypotheses[image_id] for image_id in ordered(hypotheses)])
        hyps = Hypotheses(
            dict(zip(refs.ids, tokens, strict=True)),
            dict(hypotheses.items()),
            dict(() if images is None else images.items()),
        )
        empty = [image_id for image_id, text in hyps.items() if not text]
        notes = [*refs.notes, *_metric_notes(refs, empty)]
        scores = Scores({}, {image_id: {} for image_id in refs.ids}, notes, provenance(java, refs))
        chosen = {name: self.metric(name, config) for name, config in (metrics or self._usual()).items()}
        missing = {name: metric.missing() for name, metric in chosen.items()}
        ready = {name: metric for name, metric in chosen.items() if missing[name] is None}
        for name, answer in _compute(ready, refs, hyps).items():
            if isinstance(answer, Exception):
                notes.append(f"{name}: not computed; {one_line(answer)}")
            else:
                _enter(answer, refs.ids, scores)
        notes += [note for note in missing.values() if note is not None]
        return scores

    def _usual(self) -> dict[str, Any]:
        return {name: registry.metrics.config(name)() for name in USUAL}

    def metric(self, name: str, config: Any) -> Metric:
        """Return the metric of a name and its keys, made once."""
        if name == "SPICE" and config.dir is None and self.spice_dir is not None:
            config = replace(config, dir=str(self.spice_dir))
        key = f"{name} {config}"
        if key not in self._metrics:
            self._metrics[key] = registry.metrics.get(name)(config)
        return self._metrics[key]

    def references(self, references: Mapping[K, Sequence[str]]) -> ReferenceSet:
        """Return the set, one of those kept or a new one.

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


def _compute(
    metrics: Mapping[str, Metric], refs: ReferenceSet, hyps: Hypotheses
) -> dict[str, Measured | Exception]:
    """Every metric's values, or what it ran into; those that wait for another process stand beside the others."""
    with ThreadPoolExecutor(max(1, len(metrics))) as pool:
        waiting = {
            n: pool.submit(_attempt, metric, refs, hyps) for n, metric in metrics.items() if metric.beside
        }
        answers = {n: _attempt(metric, refs, hyps) for n, metric in metrics.items() if not metric.beside}
        return {n: waiting[n].result() if n in waiting else answers[n] for n in metrics}


def _attempt(metric: Metric, refs: ReferenceSet, hyps: Hypotheses) -> Measured | Exception:
    """The metric's values, or the exception: whatever one metric runs into, the others are still worth having."""
    try:
        measured = metric(refs, hyps)
        for name, (whole, each) in measured.values.items():
            if not all(math.isfinite(value) for value in (whole, *each) if value is not None):
                raise ValueError(f"{name} is not a number")
    except UserError:
        raise
    except Exception as error:
        return error
    return measured


def _enter(measured: Measured, ids: Sequence[Id], scores: Scores) -> None:
    """Put a metric's values where they belong."""
    scores.statistics.update(measured.statistics)
    scores.diversity.update(measured.of_set)
    scores.provenance.update(measured.made_with)
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


class Bleu(Metric):
    """BLEU-1 to 4."""

    def __call__(self, references: ReferenceSet, hypotheses: Hypotheses) -> Measured:
        """See `Metric.__call__`."""
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer, cook_test

        scorer = BleuScorer(n=4)
        scorer.crefs = references.bleu
        scorer.ctest = [
            cook_test(text, cooked) for text, cooked in zip(hypotheses.values(), references.bleu, strict=True)
        ]
        whole, each = scorer.compute_score(option="closest", verbose=0)
        statistics = [
            [*of_image["correct"], *of_image["guess"], of_image["testlen"], _closest(of_image)]
            for of_image in scorer.ctest
        ]
        values = {f"Bleu_{n + 1}": (whole[n], each[n]) for n in range(4)}
        return Measured(values, {"Bleu": np.array(statistics, np.float64)})


def _closest(of_image: Mapping[str, Any]) -> int:
    """Return the reference length nearest to the hypothesis's, the shorter of two as near."""
    length: int = of_image["testlen"]
    lengths: list[int] = of_image["reflen"]
    return min(lengths, key=lambda reference: (abs(reference - length), reference))


class MeteorMetric(Metric):
    """METEOR, by a live process.

    Args:
        config: no keys.
        meteor: the process to ask; None makes one.
    """

    beside: ClassVar = True

    def __init__(self, config: Any, meteor: Meteor | None = None) -> None:
        super().__init__(config)
        self.meteor = meteor or Meteor()
        self._tables: list[tuple[frozenset[str], Path]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def close(self) -> None:
        """End the process and remove the cut tables."""
        self.meteor.close()
        self._tables.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __call__(self, references: ReferenceSet, hypotheses: Hypotheses) -> Measured:
        """See `Metric.__call__`; only pairs that were not asked for before go to the process."""
        refs, hyps = references, hypotheses
        new = [(image_id, text) for image_id, text in hyps.items() if (image_id, text) not in refs.meteor]
        self.meteor.use(self._table(refs))
        answers = self.meteor.statistics([(refs.distinct[image_id], text) for image_id, text in new])
        refs.meteor.update(zip(new, answers, strict=True))
        lines = [refs.meteor[pair] for pair in hyps.items()]
        return Measured({"METEOR": self.meteor.scores(lines)}, {"METEOR": additive(lines)})

    def _table(self, refs: ReferenceSet) -> Path:
        """Return a paraphrase table cut to these captions, or to more than these, which does as well."""
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


class Rouge(Metric):
    """ROUGE-L."""

    def __call__(self, references: ReferenceSet, hypotheses: Hypotheses) -> Measured:
        """See `Metric.__call__`."""
        from pycocoevalcap.rouge.rouge import Rouge as Scorer

        answers = {image_id: [text] for image_id, text in hypotheses.items()}
        return Measured({"ROUGE_L": Scorer().compute_score(references.distinct, answers)})


class Cider(Metric):
    """CIDEr-D."""

    def __call__(self, references: ReferenceSet, hypotheses: Hypotheses) -> Measured:
        """See `Metric.__call__`."""
        return Measured({"CIDEr": references.cider.score(list(hypotheses.values()))})


class Spice(Metric):
    """SPICE, where its files are."""

    @property
    def folder(self) -> Path | None:
        """Where they should be."""
        return None if self.config.dir is None else Path(self.config.dir)

    def missing(self) -> str | None:
        """See `Metric.missing`."""
        return missing_note(self.folder)

    def __call__(self, references: ReferenceSet, hypotheses: Hypotheses) -> Measured:
        """See `Metric.__call__`."""
        assert self.folder is not None
        return spice(self.folder, references, hypotheses)


class Diversity(Metric):
    """What the hypotheses are like among themselves."""

    def __call__(self, references: ReferenceSet, hypotheses: Hypotheses) -> Measured:
        """See `Metric.__call__`."""
        return Measured(of_set=diversity(list(hypotheses.values())))


@cache
def _shared() -> CaptionScorer:
    return CaptionScorer()


def make_metrics(metrics: Mapping[str, Any]) -> None:
    """Make the metrics of `run.metrics` for the scorer that the whole program shares, so that mistakes show early.

    Raises:
        UserError: what a metric wants is not there.
    """
    for name, config in metrics.items():
        _shared().metric(name, config)


def score_captions(
    references: Mapping[K, Sequence[str]],
    hypotheses: Mapping[K, str],
    *,
    spice_dir: Path | None = None,
    metrics: Mapping[str, Any] | None = None,
    images: Mapping[K, Path] | None = None,
) -> Scores:
    """Score one hypothesis for each image, with the scorer that the whole program shares (`CaptionScorer.score`).

    Args:
        references: image id → its captions.
        hypotheses: image id → one caption.
        spice_dir: folder with SPICE's two CoreNLP jars.
        metrics: see `CaptionScorer.score`.
        images: see `CaptionScorer.score`.

    Raises:
        UserError: ids do not fit, no Java, or the tokenizer failed.
    """
    scorer = _shared()
    scorer.spice_dir = spice_dir
    return scorer.score(references, hypotheses, metrics=metrics, images=images)
