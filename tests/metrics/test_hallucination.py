"""What captions invent, on captions worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bita.config.parts import InventedConfig
from bita.errors import UserError
from bita.metrics import score_captions
from bita.metrics.hallucination import Vocabulary, invented
from bita.metrics.stats import values as sums

WORDS = Vocabulary()


@pytest.mark.parametrize(
    ("caption", "things", "counts"),
    [
        ("Two large white planes beside a terminal .", ["airplane", "terminal"], [("airplane", 2)]),
        ("a baseball field near some fields", ["baseball field", "farmland"], []),
        ("two red and white planes", ["airplane"], [("airplane", 2)]),
        ("three rows of trees in two sides of a railway station", ["tree", "railway station"], []),
        ("divided into four parts by the road", ["road"], []),
        ("plants on one bank and a road on the other side", ["road"], []),
        ("a road across another one diagonally with some cars", ["road", "car"], []),
        ("many green trees on both sides of a curved river", ["tree", "river"], []),
        ("there is a parking lot with three cars", ["parking lot", "car"], [("car", 3)]),
        ("one of the mobile home parks and a viaduct", ["mobile home", "bridge"], []),
        ("two rows of very many neatly arranged houses", ["house"], []),
        ("a carport in the forestry plantation", [], []),
    ],
)
def test_what_a_caption_names(caption: str, things: list[str], counts: list[tuple[str, int]]) -> None:
    named = WORDS.named(caption)
    assert named.things == things
    assert named.counts == counts


def test_shares_by_hand() -> None:
    """Four captions: right (woods have trees); a river from nowhere; three planes of two; a number that nobody gave."""
    references = {
        1: ["a lake in the woods"],
        2: ["a road through a forest"],
        3: ["two planes at an airport", "airplanes on the apron"],
        4: ["some houses"],
    }
    hypotheses = {1: "a pond with trees", 2: "a road beside a river", 3: "three planes", 4: "six houses"}
    found = invented(references, hypotheses, WORDS)
    assert found.examples == {2: ["river"], 3: ["three airplane"]}
    assert found.captions == 2 / 4
    assert found.things == 1 / 6
    assert found.counts == 1 / 1
    assert found.of_images == {1: (0, 2), 2: (1, 2), 3: (0, 1), 4: (0, 1)}


def test_a_reference_never_invents(bita_data: Path) -> None:
    content = json.loads((bita_data / "ucm_captions/dataset.json").read_text())
    references = {image["imgid"]: [s["raw"] for s in image["sentences"]] for image in content["images"]}
    first = {image_id: captions[0] for image_id, captions in references.items()}
    assert invented(references, first, WORDS).examples == {}
    assert sum(bool(WORDS.named(caption).things) for caption in first.values()) > 0.9 * len(first)


def test_the_metric_is_asked_for_by_name() -> None:
    references = {1: ["a lake"], 2: ["a road through a forest"]}
    hypotheses = {1: "a pond with boats .", 2: "a road, and trees"}
    scores = score_captions(references, hypotheses, metrics={"invented": InventedConfig()})
    assert scores.overall == {"invented": 0.5, "invented_words": 0.25}
    each = {1: {"invented": 1.0, "invented_words": 0.5}, 2: {"invented": 0.0, "invented_words": 0.0}}
    assert scores.per_image == each
    assert {name: values[0] for name, values in sums(scores, np.ones((1, 2))).items()} == scores.overall


def test_a_word_that_stands_for_two_things_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text("things: {car: [car, bus], bus: [bus]}")
    with pytest.raises(UserError, match="'bus' stands for 'bus' and for 'car'"):
        Vocabulary(file)
    file.write_text("things: {car: [car]}\nincludes: {car: [bus]}")
    with pytest.raises(UserError, match="includes: 'bus' is none of the things"):
        Vocabulary(file)
    file.write_text("- a")
    with pytest.raises(UserError, match="wanted YAML with things"):
        Vocabulary(file)
