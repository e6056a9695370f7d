"""What makes plain pycocoevalcap hang, crash or shift captions, and what happens here instead."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bita.errors import UserError
from bita.metrics import CaptionScorer
from bita.metrics.java import Java, jar_folder
from bita.metrics.spice import JARS
from bita.metrics.tokenizer import Tokenizer

from .conftest import HYPOTHESES, REFERENCES

ODD_ENDS = ["\r", "\x0b", "\x0c", "\u2028", "\u2029", "\x85", "\n", "\r\n", "\x1e"]


def plain_tokens(captions: list[str]) -> list[list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    given = {n: [{"caption": caption}] for n, caption in enumerate(captions)}
    return list(PTBTokenizer().tokenize(given).values())


# --- offline: SPICE's download ------------------------------------------------------------------------------------


def test_spice_cannot_cost_the_other_scores(scorer: CaptionScorer) -> None:
    scores = scorer.score(REFERENCES, HYPOTHESES)
    assert set(scores.overall) == {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"}
    [note] = scores.notes
    assert note.startswith("SPICE: not computed; ")
    assert all(name in note for name in JARS)
    assert "spice_dir" in note


def test_plain_evaluation_downloads_before_it_scores() -> None:
    """Here the download fails at once; no score has been computed by then."""
    program = (
        "import urllib.request as r, pycocoevalcap.spice.get_stanford_models as g\n"
        "def offline(*a, **k): raise OSError('offline')\n"
        "g.urlretrieve = offline\n"
        "from pycocoevalcap.spice.spice import Spice\n"
        "Spice()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    if (jar_folder() / "spice" / "lib" / JARS[0]).is_file():
        pytest.skip("SPICE's jars were put into pycocoevalcap's folder")
    assert done.returncode == 1
    assert "OSError: offline" in done.stderr


def test_a_metric_that_fails_is_noted_and_the_others_stay(
    scorer: CaptionScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pycocoevalcap.rouge.rouge import Rouge

    def fail(*_: object) -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr(Rouge, "calc_score", fail)
    scores = scorer.score(REFERENCES, HYPOTHESES)
    assert "ROUGE_L" not in scores.overall
    assert {"Bleu_4", "METEOR", "CIDEr"} <= set(scores.overall)
    assert scores.notes[0] == "ROUGE_L: not computed; ValueError: two lines"


def test_nowhere_for_temporary_files(monkeypatch: pytest.MonkeyPatch, small_table: Path) -> None:
    """The cut paraphrase table has no place: METEOR takes the whole one (here a small one, to be quick)."""

    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bita.metrics.scorers.cut_table", no_space)
    monkeypatch.setattr("bita.metrics.scorers.full_table", lambda: small_table)
    with CaptionScorer() as scorer:
        assert scorer.score(REFERENCES, HYPOTHESES).overall["METEOR"] > 0


# --- the tokenizer's exit code and lines --------------------------------------------------------------------------


def test_failed_tokenizer_is_an_error(fake_java: Callable[[str], Java]) -> None:
    java = fake_java("echo 'Could not find or load main class' >&2; exit 3")
    with pytest.raises(UserError, match=r"^the PTB tokenizer failed, exit code 3: Could not find or load"):
        Tokenizer(java).tokenize(["a river, wide"])


def test_plain_tokenizer_takes_a_failure_for_one_empty_caption(fake_java: Callable[[str], Java]) -> None:
    from pycocoevalcap.rouge.rouge import Rouge

    fake_java("exit 3")
    tokens = plain_tokens(["a river", "two planes"])
    assert tokens == [[""]]
    assert Rouge().compute_score({0: tokens[0]}, {0: tokens[0]})[0] == 1.0


def test_wrong_number_of_lines_is_an_error(fake_java: Callable[[str], Java]) -> None:
    java = fake_java("echo only one")
    with pytest.raises(UserError, match=r"^the PTB tokenizer answered 2 captions with 1 lines$"):
        Tokenizer(java).tokenize(["a river, wide", "2 planes"])


# --- white space that shifts captions -----------------------------------------------------------------------------


def test_line_ends_inside_captions_shift_nothing() -> None:
    captions = [f"a river{end}runs {n}" for n, end in enumerate(ODD_ENDS)]
    assert Tokenizer().tokenize(captions) == [f"a river runs {n}" for n in range(len(ODD_ENDS))]


def test_plain_tokenizer_shifts_captions() -> None:
    assert plain_tokens(["a\rriver", "two planes", "a court"]) == [["a"], ["river"], ["two planes"]]


def test_characters_that_cannot_be_tokenized() -> None:
    captions = ["", " \t ", "...", "\U0001f600", "\x00", "a \ud800 b", "<a href='x", "y'>", "*NL*", "a river"]
    tokens = Tokenizer().tokenize(captions)
    assert len(tokens) == len(captions)
    assert tokens[:5] == [""] * 5
    assert tokens[-1] == "a river"


def test_tokens_do_not_depend_on_the_neighbours() -> None:
    captions = [
        "trees in the U.S.",
        "The end etc.",
        '"an open quote',
        'and closed"',
        "2 1/2",
        "(123)",
        "456-7890",
    ]
    together = Tokenizer().tokenize(captions)
    assert Tokenizer().tokenize(captions[::-1])[::-1] == together
    assert [Tokenizer().tokenize([caption])[0] for caption in captions[:2]] == together[:2]


# --- ids ----------------------------------------------------------------------------------------------------------


def without(image_id: int) -> dict[int, str]:
    return {n: text for n, text in HYPOTHESES.items() if n != image_id}


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        (REFERENCES, without(7), "1 of 5 images (id 7) without hypothesis"),
        (REFERENCES, {}, "5 of 5 images (ids 1, 3, 7, 12, 20) without hypothesis"),
        (REFERENCES, {**HYPOTHESES, 99: "x"}, "1 of 6 hypotheses (id 99) for images that have no references"),
        ({**REFERENCES, 7: []}, HYPOTHESES, "1 of 5 images (id 7) without references"),
        ({**REFERENCES, 7: [" ", "..."]}, HYPOTHESES, "1 of 5 images (id 7) without references"),
        ({}, {}, "nothing to score"),
        (REFERENCES, {**HYPOTHESES, 3: None}, "1 of 5 hypotheses (id 3) not text"),
        ({**REFERENCES, 7: "a court"}, HYPOTHESES, "1 of 5 images (id 7) with references that are not lists"),
    ],
)
def test_ids_are_checked_first(
    scorer: CaptionScorer, references: dict[int, list[str]], hypotheses: dict[int, str], message: str
) -> None:
    with pytest.raises(UserError) as error:
        scorer.score(references, hypotheses)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("references", "hypotheses"),
    [
        ({1: ["a"], 2: ["b"]}, {1: ["a"]}),
        ({1: ["a"]}, {1: ["a"], 2: ["b"]}),
        ({1: ["a"], 2: []}, {1: ["a"], 2: ["b"]}),
        ({1: ["a"]}, {1: ["a", "b"]}),
    ],
)
def test_plain_scorers_say_nothing_of_ids(
    references: dict[int, list[str]], hypotheses: dict[int, list[str]]
) -> None:
    from pycocoevalcap.rouge.rouge import Rouge

    with pytest.raises(AssertionError) as error:
        Rouge().compute_score(references, hypotheses)
    assert str(error.value) == ""


def test_empty_hypotheses_score_nothing_and_shift_nothing(scorer: CaptionScorer) -> None:
    usual = scorer.score(REFERENCES, HYPOTHESES)
    scores = scorer.score(REFERENCES, {**HYPOTHESES, 1: "", 12: " ...\n", 20: "!"})
    for image_id in (1, 12, 20):
        assert set(scores.per_image[image_id].values()) == {0.0}
    for image_id in (3, 7):
        assert scores.per_image[image_id] == usual.per_image[image_id]
    assert scores.notes[0] == "3 of 5 hypotheses (ids 1, 12, 20) without a word, scored 0"
    assert all(scores.overall[name] < usual.overall[name] for name in usual.overall)


def test_all_hypotheses_empty(scorer: CaptionScorer) -> None:
    assert set(scorer.score(REFERENCES, dict.fromkeys(REFERENCES, "")).overall.values()) == {0.0}


def test_references_without_a_word_are_left_out(scorer: CaptionScorer) -> None:
    padded = {**REFERENCES, 7: [*REFERENCES[7], "", "."]}
    scores = scorer.score(padded, {**HYPOTHESES, 7: ""})
    assert scores.per_image[7]["ROUGE_L"] == 0.0
    assert scores.notes[0] == "references without a word left out: 1 of 5 images (id 7)"


# --- a read-only installation -------------------------------------------------------------------------------------

READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 99
shift
exec "$@"
"""


def in_read_only_installation(program: str) -> subprocess.CompletedProcess[str]:
    """Run Python with pycocoevalcap's folder mounted read-only, in a mount namespace of its own."""
    command = ["unshare", "-m", "sh", "-c", READ_ONLY, "sh", str(jar_folder()), sys.executable, "-c", program]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except OSError:
        pytest.skip("unshare is not there")
    if done.returncode in (1, 99) and ("unshare:" in done.stderr or "mount:" in done.stderr):
        pytest.skip("mounting is not permitted here")
    return done


def test_read_only_installation() -> None:
    done = in_read_only_installation(
        "from bita.metrics import score_captions\n"
        "print(score_captions({1: ['a river'], 2: ['a court']}, {1: 'a river', 2: ''}).overall['METEOR'])\n"
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0


def test_plain_tokenizer_needs_a_writable_installation() -> None:
    done = in_read_only_installation(
        "from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer\n"
        "PTBTokenizer().tokenize({1: [{'caption': 'a river'}]})\n"
    )
    assert "Read-only file system" in done.stderr
