"""`python -m bita.metrics`: files in every form, what is written, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bita.errors import UserError
from bita.metrics import CaptionScorer, __main__
from bita.metrics.files import paired, read_hypotheses, read_references

from .conftest import HYPOTHESES, REFERENCES

COCO = {
    "images": [{"id": n} for n in REFERENCES],
    "annotations": [
        {"id": n, "image_id": n, "caption": text} for n, texts in REFERENCES.items() for text in texts
    ],
}
RESULTS = [{"image_id": n, "caption": text} for n, text in HYPOTHESES.items()]


def put(path: Path, content: Any, lines: bool = False) -> Path:
    text = "\n".join(map(json.dumps, content)) + "\n" if lines else json.dumps(content, indent=1)
    path.write_text(text, encoding="utf-8")
    return path


def test_forms_of_references_agree(tmp_path: Path) -> None:
    several = [{"image_id": n, "captions": texts} for n, texts in REFERENCES.items()]
    assert read_references(put(tmp_path / "coco.json", COCO)) == REFERENCES
    assert read_references(put(tmp_path / "list.json", COCO["annotations"])) == REFERENCES
    assert read_references(put(tmp_path / "lines.jsonl", COCO["annotations"], lines=True)) == REFERENCES
    assert read_references(put(tmp_path / "several.jsonl", several, lines=True)) == REFERENCES
    assert read_hypotheses(put(tmp_path / "results.jsonl", RESULTS, lines=True)) == HYPOTHESES
    assert read_hypotheses(put(tmp_path / "one.jsonl", RESULTS[:1], lines=True)) == {1: HYPOTHESES[1]}


def test_ids_that_are_text(tmp_path: Path) -> None:
    named = [{"image_id": f"{n}.jpg", "caption": text} for n, text in HYPOTHESES.items()]
    hypotheses = read_hypotheses(put(tmp_path / "results.json", named))
    references, own = paired({name: ["a"] for name in hypotheses}, hypotheses)
    assert references.keys() == own.keys() == {"1.jpg", "12.jpg", "20.jpg", "3.jpg", "7.jpg"}
    digits = read_hypotheses(put(tmp_path / "digits.json", [{"image_id": "7", "caption": "a"}]))
    assert paired({7: ["b"]}, digits) == ({7: ["b"]}, {7: "a"})
    assert paired({"7": ["b"], "x": ["c"]}, {7: "a", "x": "d"})[1] == {"7": "a", "x": "d"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "results.json: not JSON"),
        ('{"image_id": 1, "caption": "a"}\n{"image_id"\n', "results.json: line 2: not JSON"),
        ("7", "results.json: wanted an object, found a number"),
        ('[{"image_id": 1}]', "results.json: record 0: field 'caption' is missing"),
        ('[{"caption": "a"}]', "results.json: record 0: field 'image_id' is missing"),
        (
            '[{"image_id": 1, "caption": 5}]',
            "results.json: record 0: field 'caption' must be text, not a number",
        ),
        (
            '[{"image_id": 1, "caption": "a"}, {"image_id": 2, "caption": "a"}, {"image_id": 1, "caption": "b"}]',
            "results.json: 1 of 2 images (id 1) not with exactly one caption",
        ),
    ],
)
def test_odd_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_hypotheses(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_and_bytes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json: no such file"):
        read_references(tmp_path / "nowhere.json")
    (tmp_path / "bytes.json").write_bytes(b'"\xff"')
    with pytest.raises(
        UserError, match=r"bytes\.json: line 1: not UTF-8 text \(byte 0xff\); save it as UTF-8"
    ):
        read_references(tmp_path / "bytes.json")


def test_command_writes_what_the_function_finds(
    scorer: CaptionScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run in this process, with the scorer that is alive."""
    monkeypatch.setattr(__main__, "CaptionScorer", lambda spice_dir: Kept(scorer))
    references, hypotheses = put(tmp_path / "gt.json", COCO), put(tmp_path / "results.json", RESULTS)
    other = put(tmp_path / "other.json", [{**record, "caption": "a river"} for record in RESULTS])
    classes = put(tmp_path / "classes.json", {str(n): "odd" if n % 2 else "even" for n in REFERENCES})
    options = [
        "--bootstrap",
        "100",
        "--versus",
        str(other),
        "--classes",
        str(classes),
        "--train",
        str(references),
    ]
    target = tmp_path / "scores.json"
    assert __main__.main([str(references), str(hypotheses), "--json", str(target), *options]) == 0
    content = json.loads(target.read_text(encoding="utf-8"))
    expected = scorer.score(REFERENCES, HYPOTHESES)
    assert content["overall"] == expected.overall
    assert content["per_image"] == {str(n): found for n, found in expected.per_image.items()}
    assert content["diversity"]["novelty"] == 1.0
    assert set(content["versus"]) == set(content["intervals"]) == set(expected.overall)
    assert {name: found["images"] for name, found in content["classes"].items()} == {"even": 2, "odd": 3}
    printed = capsys.readouterr().out
    assert f"CIDEr     {expected.overall['CIDEr']:8.4f}  [" in printed
    assert "5 images" in printed


class Kept:
    """Gives a scorer for a `with`, and leaves it alive."""

    def __init__(self, scorer: CaptionScorer) -> None:
        self.scorer = scorer

    def __enter__(self) -> CaptionScorer:
        return self.scorer

    def __exit__(self, *_: object) -> None:
        return


def test_classes_of_the_ground_truth_are_scored_without_asking(
    scorer: CaptionScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(__main__, "CaptionScorer", lambda spice_dir: Kept(scorer))
    images = [{"id": n, "category": "odd" if n % 2 else "even"} for n in REFERENCES]
    hypotheses, target = put(tmp_path / "results.json", RESULTS), tmp_path / "scores.json"
    for known, expected in ((images, {"even": 2, "odd": 3}), ([*images[1:], {"id": images[0]["id"]}], None)):
        references = put(tmp_path / "gt.json", {**COCO, "images": known})
        assert __main__.main([str(references), str(hypotheses), "--json", str(target)]) == 0
        found = json.loads(target.read_text(encoding="utf-8")).get("classes")
        assert (found and {name: values["images"] for name, values in found.items()}) == expected


def test_command_line_refuses_in_one_line(tmp_path: Path) -> None:
    references = put(tmp_path / "gt.json", COCO)
    hypotheses = put(tmp_path / "results.json", RESULTS[:3])
    command = [sys.executable, "-m", "bita.metrics", str(references), str(hypotheses)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == ("error: 2 of 5 images (ids 12, 20) without hypothesis: each needs one caption\n")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ({"images": ["a.jpg"], "annotations": RESULTS}, "gt.json: images[0]: wanted an object, found text"),
        ([{"image_id": "9" * 5000, "caption": "a"}], f"1 of 1 images (id {'9' * 80}) without hypothesis"),
        (
            [{"image_id": "a\ud83d", "caption": "a"}],
            "gt.json: record 0: field 'image_id' holds half of a surrogate",
        ),
        (
            [{"image_id": 1, "caption": "a\ud83d"}],
            "gt.json: record 0: field 'caption' holds half of a surrogate",
        ),
        (
            [{"image_id": 1, "caption": "a"}, {"image_id": "2", "caption": "b"}],
            "'2' is text, but 1 of record 0 is a",
        ),
        ({"images": 7, "annotations": []}, "gt.json: field 'images' must be a list, not a number"),
        (None, "gt.json: wanted an object, found null"),
    ],
)
def test_content_that_is_no_references_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], references: Any, message: str
) -> None:
    hypotheses = put(tmp_path / "results.json", RESULTS)
    assert __main__.main([str(put(tmp_path / "gt.json", references)), str(hypotheses)]) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert (printed.out, printed.err.count("\n")) == ("", 1)


def test_classes_that_are_no_labels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [put(tmp_path / "gt.json", COCO), put(tmp_path / "results.json", RESULTS)]
    classes = put(tmp_path / "classes.json", dict.fromkeys(map(str, REFERENCES), None))
    assert __main__.main([*map(str, files), "--classes", str(classes)]) == 1
    assert "classes.json: field '3' must be text, not null" in capsys.readouterr().err
    assert __main__.main([*map(str, files), "--classes", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}: is a folder; name a file\n"
