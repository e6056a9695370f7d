"""Which metrics are computed is a choice: by `run.metrics`, by the command, one's own among them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bita.config.keys import key
from bita.config.schema import MetricConfig
from bita.errors import ConfigError, UserError
from bita.metrics import CaptionScorer, Hypotheses, Measured, Metric, ReferenceSet
from bita.metrics.__main__ import main
from bita.registry import metrics
from tests.metrics.conftest import HYPOTHESES, REFERENCES

pytestmark = pytest.mark.usefixtures("forgotten")


def keys(*names: str) -> dict[str, Any]:
    return {name: metrics.config(name)() for name in names}


def test_only_what_is_asked_for_is_computed_and_comes_to_the_same(scorer: CaptionScorer) -> None:
    usual = scorer.score(REFERENCES, HYPOTHESES)
    chosen = scorer.score(REFERENCES, HYPOTHESES, metrics=keys("CIDEr", "Bleu"))
    assert list(chosen.overall) == ["CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"]
    assert chosen.overall == {name: usual.overall[name] for name in chosen.overall}
    assert chosen.diversity == {}
    assert not any("SPICE" in note for note in chosen.notes)
    assert chosen.provenance["metrics"] == usual.provenance["metrics"]


def test_the_names_of_scores_that_are_promised_are_those_that_come(scorer: CaptionScorer) -> None:
    for name in ("Bleu", "METEOR", "ROUGE_L", "CIDEr", "diversity"):
        found = scorer.score(REFERENCES, HYPOTHESES, metrics=keys(name)).overall
        assert tuple(found) == metrics.config(name).scores


def test_a_metric_that_fails_is_noted_and_a_users_mistake_ends_the_scoring(scorer: CaptionScorer) -> None:
    @metrics.register("broken")
    class Broken(Metric):
        def __call__(self, references: ReferenceSet, hypotheses: Hypotheses) -> Measured:
            raise ZeroDivisionError("no words")

    @metrics.register("mistaken")
    class Mistaken(Metric):
        def __call__(self, references: ReferenceSet, hypotheses: Hypotheses) -> Measured:
            raise UserError("words.txt: no such file")

    scores = scorer.score(REFERENCES, HYPOTHESES, metrics=keys("broken", "ROUGE_L"))
    assert (list(scores.overall), scores.notes) == (
        ["ROUGE_L"],
        ["broken: not computed; ZeroDivisionError: no words"],
    )
    with pytest.raises(UserError, match=r"^words\.txt: no such file$"):
        scorer.score(REFERENCES, HYPOTHESES, metrics=keys("mistaken"))


def test_a_metric_sees_texts_as_written_files_and_its_own_keys(scorer: CaptionScorer) -> None:
    @metrics.register("seen")
    class Seen(Metric):
        @dataclass(kw_only=True)
        class Config(MetricConfig):
            factor: float = key(1.0, above=0)

        def __call__(self, references: ReferenceSet, hypotheses: Hypotheses) -> Measured:
            assert hypotheses.given == HYPOTHESES
            assert list(hypotheses) == references.ids
            values = [self.config.factor * len(references.given[n]) for n in hypotheses]
            return Measured(
                {"seen": (sum(values), values)},
                of_set={"files": float(len(hypotheses.images))},
                made_with={"factor": self.config.factor},
            )

    config = metrics.config("seen")(factor=2.0)
    scores = scorer.score(REFERENCES, HYPOTHESES, metrics={"seen": config}, images={1: Path("a.png")})
    assert scores.overall == {"seen": 2.0 * sum(map(len, REFERENCES.values()))}
    assert (scores.diversity, scores.provenance["factor"]) == ({"files": 1.0}, 2.0)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of the command, in a folder with a metric of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    references = [{"image_id": 1, "captions": ["a wide river"]}, {"image_id": 2, "captions": ["two planes"]}]
    Path("references.json").write_text(json.dumps(references))
    Path("hypotheses.json").write_text(json.dumps([{"image_id": n, "caption": "a river"} for n in (1, 2)]))
    Path("my_metrics.py").write_text(
        "from dataclasses import dataclass\n"
        "from bita.config.schema import MetricConfig\n"
        "from bita.metrics import Measured, Metric\n"
        "from bita.registry import metrics\n"
        "@metrics.register('starts')\n"
        "class Starts(Metric):\n"
        "    @dataclass(kw_only=True)\n"
        "    class Config(MetricConfig):\n"
        "        word: str = 'the'\n"
        "    def __call__(self, references, hypotheses):\n"
        "        found = [float(text.startswith(self.config.word)) for text in hypotheses.values()]\n"
        "        return Measured({'starts': (sum(found) / len(found), found)})\n"
    )
    return ["references.json", "hypotheses.json", "--imports", "my_metrics"]


def test_the_command_computes_what_it_is_asked_for(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*files, "--metric", "starts", "word=a", "--metric", "ROUGE_L", "--json", "out.json"]
    assert main([*asked, "--bootstrap", "10"]) == 0
    assert list(json.loads(Path("out.json").read_text())["overall"]) == ["starts", "ROUGE_L"]
    assert capsys.readouterr().out.startswith("starts      1.0000  [1.0000, 1.0000]\n")
    sys.modules.pop("my_metrics", None)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["CIDr"], "metrics.CIDr (--metric): unknown metric 'CIDr'; did you mean 'CIDEr'?"),
        (["SPICE", "dri=x"], "metrics.SPICE.dri (--metric): unknown key; did you mean 'metrics.SPICE.dir'?"),
        (["CLIPScore"], "metrics.CLIPScore.run (--metric): is missing"),
        (["SPICE", "dir"], "--metric: 'metrics.SPICE.dir' is not of the form key=value"),
    ],
)
def test_what_is_wrong_with_a_metric_is_one_line(
    files: list[str], capsys: pytest.CaptureFixture[str], asked: list[str], said: str
) -> None:
    assert main([*files[:2], "--metric", *asked]) == ConfigError.exit_code
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1
