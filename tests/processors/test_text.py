"""The caption text processor against the recorded published one, and its corner cases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bita.processors.text import CaptionProcessor, clean_caption

EXPECTED = json.loads((Path(__file__).parents[1] / "fixtures/parity/expected.json").read_text())[
    "text_processor"
]


def test_recorded_captions_are_reproduced() -> None:
    for caption, expected in EXPECTED["cases"]:
        assert clean_caption(caption, EXPECTED["max_words"]) == expected


def test_recorded_prompted_captions_are_glued() -> None:
    for prompt, caption, expected in EXPECTED["prompted"]:
        assert CaptionProcessor(prompt, joint="glued")(caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a\tb", "a\tb"),
        ("a\nb", "a\nb"),
        ("a \n b", "a b"),
        ("a.\nb", "a b"),
        ("a\n", "a"),
        ("a \t", "a"),
        ("a\t", "a\t"),
        ("a\n\n", "a"),
        ("...", ""),
        ("a, b; c? d", "a, b c? d"),
        ("\u00a0\u00a0a", "a"),
    ],
)
def test_white_space_and_punctuation(caption: str, expected: str) -> None:
    assert clean_caption(caption) == expected


def test_words_are_cut_at_spaces_only_and_the_prompt_does_not_count() -> None:
    caption = " ".join(["w\tx"] * 60)
    assert clean_caption(caption) == " ".join(["w\tx"] * 50)
    assert CaptionProcessor("a photo of", max_words=2)("One two three") == "a photo of one two"


def test_one_space_joins_prompt_and_caption() -> None:
    assert CaptionProcessor("a photo of")("There is") == "a photo of there is"
    assert CaptionProcessor("a photo of ")("There is") == "a photo of there is"
    assert CaptionProcessor("")("There is") == "there is"
    assert CaptionProcessor("A Photo of:")("x") == "A Photo of: x"


def test_unknown_joint_is_refused() -> None:
    with pytest.raises(ValueError, match="space, glued"):
        CaptionProcessor(joint="dash")


def test_templates_hold_the_cleaned_caption_and_one_is_drawn_in_training() -> None:
    processor = CaptionProcessor(
        "a photo of", templates=["{caption} from above.", "seen from space: {caption}"]
    )
    assert processor("Two (large) planes!") == "a photo of two large planes from above."
    drawn = [processor.draw("a river", torch.Generator().manual_seed(seed)) for seed in range(200)]
    expected = {"a photo of a river from above.", "a photo of seen from space: a river"}
    assert set(drawn) == expected
    assert 70 < drawn.count("a photo of a river from above.") < 130
    assert drawn[3] == processor.draw("a river", torch.Generator().manual_seed(3))
    for templates in ([], ["no place for it"]):
        with pytest.raises(ValueError, match=r"wanted texts with \{caption\} in them"):
            CaptionProcessor(templates=templates)
