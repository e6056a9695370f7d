"""Confidence: isotonic regression, its measures by hand, and a calibration's way through run, export and records."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import bita
from bita.cli import calibrate
from bita.errors import UserError
from bita.export import export_folder
from bita.inference.calibrate import consensus_of
from bita.inference.confidence import (
    Bin,
    Calibration,
    Curve,
    expected_calibration_error,
    reliability,
    risk_coverage,
    uncalibrated,
)
from tests.datasets.makers import write_image
from tests.inference.conftest import Pair

WORDS = ("red", "green", "field", "plane", "road", "trees", "pond", "house")


def test_a_curve_is_the_closest_one_that_never_falls() -> None:
    """Against every way of cutting the points into blocks of equal value."""
    y = np.array([0.3, 0.1, 0.2, 0.9, 0.4, 0.8])
    best, least = y, math.inf
    for count in range(len(y)):
        for cuts in itertools.combinations(range(1, len(y)), count):
            fitted = np.concatenate([np.full(len(part), part.mean()) for part in np.split(y, cuts)])
            if (np.diff(fitted) >= 0).all() and (loss := float(((fitted - y) ** 2).sum())) < least:
                best, least = fitted, loss
    x = np.array([5.0, 1, 3, 9, 7, 8])
    order = np.array([1, 2, 0, 4, 5, 3])  # that sorts x
    shuffled = np.empty_like(y)
    shuffled[order] = y
    curve = Curve.fit(x, shuffled)
    assert curve(x)[order] == pytest.approx(best)
    assert curve(np.array([-99.0, 99.0])) == pytest.approx([best[0], best[-1]])
    twice = Curve.fit(np.array([1.0, 1, 2]), np.array([0.0, 0.6, 0.9]))
    assert twice(np.array([1.0, 1.5, 2.0])) == pytest.approx([0.3, 0.6, 0.9])


def test_measures_are_those_worked_out_by_hand() -> None:
    confidence, quality = np.array([0.9, 0.1, 0.5, 0.7]), np.array([1.0, 0.3, 0.5, 0.4])
    assert reliability(confidence, quality, bins=2) == [
        Bin(2, pytest.approx(0.3), pytest.approx(0.4)),
        Bin(2, pytest.approx(0.8), pytest.approx(0.7)),
    ]
    assert expected_calibration_error(confidence, quality, bins=2) == pytest.approx(0.1)
    assert expected_calibration_error(confidence, confidence) == 0
    coverage, kept = risk_coverage(confidence, quality)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert kept == pytest.approx([1.0, 0.7, 1.9 / 3, 0.55])
    coverage, kept = risk_coverage(np.array([0.5, 0.5, 0.1]), np.array([1.0, 0.0, 0.2]))
    assert coverage == pytest.approx([2 / 3, 1])
    assert kept == pytest.approx([0.5, 0.4])
    assert uncalibrated(np.array([math.log(0.25)])) == pytest.approx([0.25])


def test_a_calibration_tells_what_is_known_from_noise(tmp_path: Path) -> None:
    """Quality follows the score, the likelihood is noise: the mix finds it, errors fall, the file holds all of it."""
    generator = np.random.default_rng(0)
    score, likelihood = generator.random((2, 400))
    quality = np.clip(score**2 + generator.normal(0, 0.05, 400), 0, 1)
    about = {"model": "m", "stage1": "s", "consensus": 5.0, "captions": 200, "split": "val"}
    own = Calibration.fit(likelihood[:200], score[:200], quality[:200], **about)
    assert own.mix is not None
    assert own.mix.share >= 0.9
    found = own.confidence(likelihood[200:], score[200:])
    assert expected_calibration_error(found, quality[200:]) < 0.05
    assert expected_calibration_error(uncalibrated(likelihood - 1)[200:], quality[200:]) > 0.2
    coverage, kept = risk_coverage(found, quality[200:])
    assert kept[np.searchsorted(coverage, 0.5)] > kept[-1] + 0.1
    own.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == own
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"calibration\.json: is no calibration of this version; fit it again"
    ):
        Calibration.load(tmp_path / "calibration.json")
    with pytest.raises(UserError, match="19 captions are too few"):
        Calibration.fit(likelihood[:19], None, quality[:19], **about)


def test_consensus_is_how_much_references_agree() -> None:
    same = [
        ["a red plane on a road", "a red plane on a road"],
        ["trees around a pond", "a pond and a green field"],
    ]
    assert 0 < consensus_of(same) < 10
    assert consensus_of([["a plane"], ["a pond"]]) == 10


def test_a_calibration_travels_with_a_run(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("stage1", "caption"):
        shutil.copytree(pair.run.parents[1] / name, tmp_path / name)
    run, root = tmp_path / "caption/run", tmp_path / "data"
    records = []
    for number in range(24):
        write_image(root / f"images/{number}.png", number, (40, 36))
        texts = [
            f"a {WORDS[(number + k) % 8]} {WORDS[(number * k) % 8]} near a {WORDS[number % 8]}"
            for k in range(3)
        ]
        records += [{"image": f"{number}.png", "caption": text, "image_id": number} for text in texts]
    (root / "annotations").mkdir()
    (root / "annotations/val.json").write_text(json.dumps(records))
    assert calibrate([str(run), "--cache-root", str(root), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith(f"{run}/calibration.json: fitted to 24 captions of val")
    captioner = bita.load(run, "cpu")
    known = captioner.caption(pair.images)
    assert all(0 <= record.confidence <= 1 for record in known)
    assert captioner.calibration is not None
    own = captioner.calibration
    likelihood = np.array([record.log_probability / record.tokens for record in known])
    both = own.confidence(likelihood, np.array([record.score for record in known]))
    assert [record.confidence for record in known] == pytest.approx(both.tolist())
    alone = list(captioner.stream(pair.images, score=False))
    assert [record.confidence for record in alone] == pytest.approx(
        own.likelihood(likelihood).tolist(), abs=1e-3
    )
    caplog.clear()
    assert own.search == captioner.settings.search()
    for _ in range(2):
        list(captioner.stream(pair.images[:1], num_beams=4, length_penalty=0.5, num_captions=2))
    assert [record.getMessage() for record in caplog.records] == [
        f"confidence was fitted to another search (num_beams was {captioner.settings.num_beams} and is 4, "
        f"length_penalty was {captioner.settings.length_penalty} and is 0.5), so it is less sure "
        "(scripts/calibrate.py, or bita-calibrate)"
    ]
    (drawn,) = captioner.stream(pair.images[:1], use_nucleus_sampling=True)
    assert drawn.confidence is None
    export_folder(run, tmp_path / "out")
    exported = bita.load(tmp_path / "out", "cpu")
    assert exported.hash != captioner.hash
    for record, other in zip(known, exported.caption(pair.images), strict=True):
        assert other.score == pytest.approx(record.score, abs=1e-5)
        assert other.confidence == pytest.approx(record.confidence, abs=1e-3)
    content = json.loads((run / "calibration.json").read_text())
    (run / "calibration.json").write_text(json.dumps(content | {"model": "of another run"}))
    assert bita.load(run, "cpu").calibration is None
    export_folder(run, tmp_path / "again", stage1=False)
    assert not (tmp_path / "again/stage1").exists()
    assert not (tmp_path / "again/calibration.json").exists()
    assert calibrate([str(run), "--cache-root", str(tmp_path / "nowhere")]) == 2
    (meta,) = run.glob("checkpoints/*/meta.json")
    meta.write_text(meta.read_text().replace('"use_nucleus_sampling": false', '"use_nucleus_sampling": true'))
    assert calibrate([str(run)]) == 1
    assert (
        "draws its captions (run.use_nucleus_sampling); those have no confidence" in capsys.readouterr().err
    )
