"""Scores equal to pycocoevalcap called directly: overall and for every image, on real captions."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bita.metrics import CaptionScorer, Scores
from bita.metrics.meteor import Meteor

from .conftest import HYPOTHESES, REFERENCES

PLAIN = Path(__file__).parent / "plain.py"


def real_references(source: Path) -> dict[int, list[str]]:
    """The test split of a dataset in its published layout."""
    content = json.loads(source.read_text(encoding="utf-8"))
    images = [image for image in content["images"] if image["split"] == "test"]
    return {image["imgid"]: [sentence["raw"] for sentence in image["sentences"]] for image in images}


def hypothesis_sets(references: dict[int, list[str]], seed: int) -> dict[str, dict[int, str]]:
    """Hypotheses of several kinds, from the references of other images."""
    rng = random.Random(seed)
    ids = sorted(references)
    others = ids[:]
    rng.shuffle(others)
    shuffled = {n: rng.choice(references[other]) for n, other in zip(ids, others, strict=True)}
    odd = [
        '"%s"',
        "(%s)",
        "%s ...",
        "%s, 50% | x/y's t-junction e.g. U.S.",
        "It isn't %s; or -- is it?",
        "%s %s",
    ]
    return {
        "own": {n: references[n][-1] for n in ids},
        "shuffled": shuffled,
        "truncated": {n: " ".join(text.split()[: rng.randint(1, 6)]) for n, text in shuffled.items()},
        "odd": {n: rng.choice(odd).replace("%s", references[n][1]) for n in ids},
    }


def plainly(
    folder: Path, references: dict[int, list[str]], sets: dict[str, dict[int, str]]
) -> dict[str, Any]:
    """Scores of pycocoevalcap itself."""
    source, target = folder / "sets.json", folder / "scores.json"
    source.write_text(json.dumps({"references": references, "hypotheses": sets}), encoding="utf-8")
    subprocess.run([sys.executable, str(PLAIN), str(source), str(target)], check=True, timeout=1200)
    plain: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    return plain


def assert_equal(scores: Scores, plain: dict[str, Any]) -> None:
    assert scores.overall == plain["overall"]
    for metric, values in plain["per_image"].items():
        assert [scores.per_image[n][metric] for n in sorted(scores.per_image)] == values, metric


def check(folder: Path, source: Path, names: list[str]) -> None:
    references = real_references(source)
    sets = {name: hypotheses for name, hypotheses in hypothesis_sets(references, 1).items() if name in names}
    plain = plainly(folder, references, sets)
    with CaptionScorer() as scorer:
        for name in names:
            assert_equal(scorer.score(references, sets[name]), plain[name])


def test_ucm(tmp_path: Path, bita_data: Path) -> None:
    check(tmp_path, bita_data / "ucm_captions" / "dataset.json", ["shuffled", "odd"])


@pytest.mark.long
def test_ucm_further_sets(tmp_path: Path, bita_data: Path) -> None:
    check(tmp_path, bita_data / "ucm_captions" / "dataset.json", ["own", "truncated"])


@pytest.mark.long
def test_rsicd(tmp_path: Path, bita_data: Path) -> None:
    check(
        tmp_path, bita_data / "rsicd_captions" / "dataset_rsicd.json", ["own", "shuffled", "truncated", "odd"]
    )


def test_order_and_repetition_change_nothing(scorer: CaptionScorer) -> None:
    first = scorer.score(REFERENCES, HYPOTHESES)
    turned = scorer.score(dict(reversed(REFERENCES.items())), dict(reversed(HYPOTHESES.items())))
    assert first.overall == turned.overall
    assert first.per_image == turned.per_image == scorer.score(REFERENCES, HYPOTHESES).per_image


@pytest.mark.long
def test_cut_table_gives_the_scores_of_the_full_one(scorer: CaptionScorer, bita_data: Path) -> None:
    """Train captions of RSICD as hypotheses: many words that the references do not have."""
    content = json.loads((bita_data / "rsicd_captions" / "dataset_rsicd.json").read_text(encoding="utf-8"))
    captions = [
        s["raw"] for image in content["images"] if image["split"] == "train" for s in image["sentences"]
    ]
    references = real_references(bita_data / "ucm_captions" / "dataset.json")
    hypotheses = dict(zip(references, random.Random(5).sample(captions, len(references)), strict=True))
    cut = scorer.score(references, hypotheses)
    tokens = scorer.references(references)
    texts = scorer.tokenizer.tokenize([hypotheses[n] for n in tokens.ids])
    full = Meteor(start_timeout=1200)
    answers = full.statistics([(tokens.tokens[n], text) for n, text in zip(tokens.ids, texts, strict=True)])
    whole, each = full.scores(answers)
    full.close()
    assert whole == cut.overall["METEOR"]
    assert each == [cut.per_image[n]["METEOR"] for n in tokens.ids]
