"""Tokens without Java are those of Stanford's tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bita.metrics.tokenizer import PLAIN, Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


def test_plain_captions_are_what_java_makes_of_them(tokenizer: Tokenizer, bita_data: Path) -> None:
    """All captions of UCM and RSICD that are taken for plain, and they are nearly all."""
    captions: set[str] = set()
    for name in ("ucm_captions/dataset.json", "rsicd_captions/dataset_rsicd.json"):
        for image in json.loads((bita_data / name).read_text())["images"]:
            captions |= {" ".join(sentence["raw"].split()) for sentence in image["sentences"]}
    plain = sorted(caption for caption in captions if PLAIN.fullmatch(caption.lower()))
    assert len(plain) > 0.95 * len(captions)
    assert tokenizer.tokenize(plain) == tokenizer._run(plain)


def test_what_java_splits_is_not_plain(tokenizer: Tokenizer) -> None:
    captions = [
        "we cannot see", "gonna go", "gotta go", "gimme that", "lemme see", "they wanna go", "a river.", "it's here",
        "3 planes", "a t-junction", "cannot", "scannot", "cannot-do", "etc .", "( b )", "two , three", "U.S. bases", "",
    ]  # fmt: skip
    assert tokenizer.tokenize(captions) == [*tokenizer._run(captions[:-1]), ""]


def test_plain_captions_need_no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bita.metrics.tokenizer.find_java", lambda: pytest.fail("asked for Java"))
    assert Tokenizer().tokenize(["Two Planes .", "a  t-junction"]) == ["two planes", "a t-junction"]
