"""What makes plain pycocoevalcap hang, crash or shift captions, and what happens here instead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bita.errors import UserError
from bita.metrics import CaptionScorer
from bita.metrics.java import Java, find_java, jar_folder
from bita.metrics.meteor import Meteor, MeteorError
from bita.metrics.references import ReferenceSet
from bita.metrics.spice import ENGINE, JARS, spice
from bita.metrics.tokenizer import Tokenizer
from scripts.checks import build_spice_engine

from .conftest import HYPOTHESES, REFERENCES

ODD_ENDS = ["\r", "\x0b", "\x0c", "\u2028", "\u2029", "\x85", "\n", "\r\n", "\x1e"]
PAIRS = [(["two planes", "planes at an airport"], "two planes at an airport"), (["a river"], "a green river")]


def plain_tokens(captions: list[str]) -> list[list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    given = {n: [{"caption": caption}] for n, caption in enumerate(captions)}
    return list(PTBTokenizer().tokenize(given).values())


# --- offline: SPICE's download ------------------------------------------------------------------------------------


def test_spice_cannot_cost_the_other_scores(scorer: CaptionScorer, tmp_path: Path) -> None:
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


# --- METEOR's process ---------------------------------------------------------------------------------------------


@pytest.fixture
def meteor(small_table: Path) -> Meteor:
    return Meteor(table=small_table, timeout=20)


def test_killed_meteor_starts_again(meteor: Meteor) -> None:
    expected = meteor.statistics(PAIRS)
    assert meteor._process is not None
    os.kill(meteor._process._process.pid, signal.SIGKILL)
    assert meteor.statistics(PAIRS) == expected
    meteor.close()


def test_hanging_meteor_is_stopped(fake_java: Callable[[str], Java], small_table: Path) -> None:
    java = fake_java("exec sleep 100")
    start = time.monotonic()
    with pytest.raises(MeteorError, match=r"^no answer to line 1 in 0\.5 s$"):
        Meteor(java, small_table, start_timeout=0.5).statistics(PAIRS)
    assert time.monotonic() - start < 30


def test_stopped_meteor_mid_way_is_stopped(meteor: Meteor) -> None:
    """The process hangs after it has answered; the second one answers."""
    expected = meteor.statistics(PAIRS)
    meteor.timeout = 5
    assert meteor._process is not None
    os.kill(meteor._process._process.pid, signal.SIGSTOP)
    assert meteor.statistics(PAIRS) == expected
    meteor.close()


def test_dead_meteor_shows_its_stderr(fake_java: Callable[[str], Java], small_table: Path) -> None:
    java = fake_java("echo 'not enough memory' >&2; exit 7")
    with pytest.raises(MeteorError, match=r"ended at line 1, exit code 7: not enough memory$"):
        Meteor(java, small_table).statistics(PAIRS)


def test_meteor_behind_a_wrapper_is_stopped_with_it(
    fake_java: Callable[[str], Java], small_table: Path, tmp_path: Path
) -> None:
    java = fake_java(f'sleep 100 & echo $! > "{tmp_path}/pid"; wait')
    with pytest.raises(MeteorError, match="no answer"):
        Meteor(java, small_table, start_timeout=5).statistics(PAIRS)
    pid = (tmp_path / "pid").read_text(encoding="utf-8").strip()
    deadline = time.monotonic() + 30
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_meteor_that_talks_nonsense(fake_java: Callable[[str], Java], small_table: Path) -> None:
    java = fake_java("while read line; do echo 0.5 0.5; done")
    with pytest.raises(MeteorError, match=r"^odd answer to line 1: '0.5 0.5'"):
        Meteor(java, small_table).statistics(PAIRS)


def test_failing_meteor_does_not_cost_the_others(
    fake_java: Callable[[str], Java], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.environ["PATH"]
    dead = fake_java("exit 1")
    monkeypatch.setenv("PATH", path)
    with CaptionScorer(meteor=Meteor(dead)) as scorer:
        monkeypatch.setattr("bita.metrics.scorers.cut_table", lambda *_: Path("/nowhere"))
        scores = scorer.score(REFERENCES, HYPOTHESES)
    assert {"Bleu_4", "ROUGE_L", "CIDEr"} <= set(scores.overall)
    assert "METEOR" not in scores.overall
    assert scores.notes[0].startswith(
        "METEOR: not computed; MeteorError: the process ended at line 1, exit code 1"
    )


def test_plain_meteor_hangs_for_ever_when_java_dies(fake_java: Callable[[str], Java]) -> None:
    fake_java("exit 1")
    program = (
        "from pycocoevalcap.meteor.meteor import Meteor\n"
        "Meteor().compute_score({1: ['a river']}, {1: ['a river']})\n"
    )
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=6)


def test_pipes_in_captions_are_not_separators(meteor: Meteor, scorer: CaptionScorer) -> None:
    [plain] = meteor.statistics([(["a river", "a lake"], "a river b")])
    assert meteor.statistics([(["a ||| river", "a lake |||"], "a ||| river b |||")]) == [plain]
    meteor.close()
    hostile = {**HYPOTHESES, 1: "||| a ||| river || in | the forest EVAL ||| SCORE |||"}
    scores = scorer.score(REFERENCES, hostile)
    assert scores.per_image[7] == scorer.score(REFERENCES, HYPOTHESES).per_image[7] | {
        "CIDEr": scores.per_image[7]["CIDEr"]
    }
    assert len(scores.notes) == 1


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


# --- SPICE's order and numbers, with a stand-in for its jars ------------------------------------------------------


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
