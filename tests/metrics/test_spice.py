"""SPICE's order and numbers, with a stand-in for its jars; the engine that it needs."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bita.errors import UserError
from bita.metrics.java import Java, find_java
from bita.metrics.references import ReferenceSet
from bita.metrics.spice import ENGINE, spice
from bita.metrics.tokenizer import Tokenizer
from scripts.checks import build_spice_engine

from .conftest import HYPOTHESES, REFERENCES


def test_spice_values_go_to_their_images(fake_java: Callable[[str], Java], tmp_path: Path) -> None:
    answer = [
        {"image_id": n, "scores": {"All": {"f": f}}}
        for n, f in ((20, 0.2), (1, 0.1), (12, float("nan")), (3, 0.3), (7, None))
    ]
    refs = ReferenceSet(REFERENCES, Tokenizer())
    stored = tmp_path / "answer.json"
    stored.write_text(json.dumps(answer), encoding="utf-8")
    find_out = 'while [ "$1" != -out ]; do shift; done'
    fake_java(f'{find_out}; cp "{stored}" "$2"')
    whole, each = spice(tmp_path, refs, {n: HYPOTHESES[n] for n in refs.ids}).values["SPICE"]
    assert refs.ids == [1, 3, 7, 12, 20]
    assert each == [0.1, 0.3, None, None, 0.2]
    assert whole == pytest.approx(0.2)


def test_plain_spice_gives_values_to_other_images_and_a_mean_that_is_no_number(
    fake_java: Callable[[str], Java], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It returns values by ascending id, and `COCOEvalCap` gives them out in the order of the annotations."""
    from pycocoevalcap.eval import COCOEvalCap
    from pycocoevalcap.spice import spice as plain

    answer = [{"image_id": n, "scores": {"All": {"f": n / 100}}} for n in (1, 3)]
    answer.append({"image_id": 7, "scores": {"All": {"f": None}}})
    stored = tmp_path / "answer.json"
    stored.write_text(json.dumps(answer), encoding="utf-8")
    fake_java(f'while [ "$1" != -out ]; do shift; done; cp "{stored}" "$2"')
    monkeypatch.setattr(plain, "get_stanford_models", lambda: None)
    monkeypatch.setattr(plain, "__file__", str(tmp_path / "spice.py"))
    given = {7: ["a court"], 3: ["two planes"], 1: ["a river"]}
    whole, each = plain.Spice().compute_score(given, given)
    evaluation = COCOEvalCap.__new__(COCOEvalCap)
    evaluation.imgToEval = {}
    evaluation.setImgToEvalImgs(each, given.keys(), "SPICE")
    assert evaluation.imgToEval[7]["SPICE"]["All"]["f"] == 0.01
    assert whole != whole


def test_failing_spice_is_noted(fake_java: Callable[[str], Java], tmp_path: Path) -> None:
    refs = ReferenceSet(REFERENCES, Tokenizer())
    fake_java("echo 'NoClassDefFoundError: edu/stanford' >&2; exit 1")
    with pytest.raises(RuntimeError, match="Java's exit code 1: NoClassDefFoundError"):
        spice(tmp_path, refs, HYPOTHESES)


def test_spice_that_hangs_or_leaves_an_image_out_is_said_in_a_line(
    fake_java: Callable[[str], Java], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are named by their own ids, text as it is, not by the numbers that SPICE gets."""
    named = {f"{n}.jpg": texts for n, texts in REFERENCES.items()}
    refs = ReferenceSet(named, Tokenizer())
    hypotheses = {f"{n}.jpg": text for n, text in HYPOTHESES.items()}
    fake_java(
        f'[ -e {tmp_path}/hang ] && exec sleep 60; while [ "$1" != -out ]; do shift; done; echo "[]" > "$2"'
    )
    with pytest.raises(RuntimeError, match=r"no answer for 5 of 5 images \(ids .*7\.jpg"):
        spice(tmp_path, refs, hypotheses)
    monkeypatch.setattr("bita.metrics.spice.TIMEOUT", 0.2)
    (tmp_path / "hang").touch()
    with pytest.raises(RuntimeError, match=r"^Java took over 0 s for 5 captions$"):
        spice(tmp_path, refs, hypotheses)


def test_engine_gives_spice_its_json_back() -> None:
    """Java 15 and later have no JavaScript engine, which SPICE asks for."""
    command = [*find_java().base("64m"), "-cp", str(ENGINE), "bita.JsonEngine", '{"a": [1, "é"]}']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == {"a": [1, "é"]}


def test_engine_is_built_from_its_source(tmp_path: Path) -> None:
    with zipfile.ZipFile(ENGINE) as jar:
        manifest = jar.read("META-INF/MANIFEST.MF").decode().replace("\r\n ", "").splitlines()
    assert f"Source-SHA-256: {build_spice_engine.source_hash()}" in manifest
    try:
        same_compiler = f"Created-By: {build_spice_engine.compiler()}" in manifest
    except UserError:
        pytest.skip("no javac")
    build_spice_engine.build(tmp_path / "again.jar")
    if same_compiler:
        assert (tmp_path / "again.jar").read_bytes() == ENGINE.read_bytes()
