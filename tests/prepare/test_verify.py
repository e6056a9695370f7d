"""Verification: each fault that was put into a dataset is found, at its right weight."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from bita.prepare.caption_stats import caption_statistics, typing_errors
from bita.prepare.prepare import prepare, published_source
from bita.prepare.verify import verify
from scripts.verify_data import main
from tests.datasets.makers import ucm_source, write_image


def ready(root: Path, per_split: int = 3) -> Path:
    prepare(
        published_source("ucm_caption", ucm_source(root / "source", per_split), root / "out"), root / "out"
    )
    return root / "out"


def test_a_clean_dataset_has_no_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ready(tmp_path)
    assert main([f"toy={out}", "--json", str(tmp_path / "found.json")]) == 0
    assert "0 problems" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["toy"]["splits"]["train"] == {"images": 3, "published": 3, "captions": 15}
    assert found["toy"]["sizes"] == {"24x20": 9}
    assert found["problems"] == []


def test_counts_are_held_against_the_published_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"ucm_caption={ready(tmp_path)}"]) == 1
    printed = capsys.readouterr().out
    assert "problem: ucm_caption train: 3 images, published are 1680" in printed
    assert "problem: ucm_caption: 45 captions, published are 10500" in printed


def test_findings_are_shown_whatever_becomes_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ready(tmp_path).rename(tmp_path / "ucm")
    (tmp_path / "file").touch()
    assert main([str(out), "--json", str(tmp_path / "file/x.json")]) == 1
    assert "note: ucm: not held against published counts; ucm_caption=FOLDER is" in capsys.readouterr().out
    assert main([str(out), "--json", str(tmp_path / "new/x.json")]) == 0
    assert (tmp_path / "new/x.json").is_file()


def test_equal_images_across_splits_are_a_problem_within_a_split_a_note(tmp_path: Path) -> None:
    out = ready(tmp_path)
    images = tmp_path / "source/imgs"
    shutil.copyfile(images / "1.tif", images / "2.tif")
    result = verify({"toy": out})
    assert result.problems == []
    assert "toy train and toy train: 1 pairs of equal images, such as 1.tif = 2.tif" in result.notes
    shutil.copyfile(images / "1.tif", images / "9.tif")
    result = verify({"toy": out})
    assert result.problems == [
        "toy test and toy train: 2 pairs of equal images, such as 9.tif = 1.tif, 9.tif = 2.tif"
    ]


def test_overlap_across_datasets_is_found_exactly_and_nearly(tmp_path: Path) -> None:
    first, second = ready(tmp_path / "a"), ready(tmp_path / "b")
    for path in (tmp_path / "b/source/imgs").iterdir():
        write_image(path, 1000 + int(path.stem))
    assert verify({"a": first, "b": second}).problems == []
    test_image = tmp_path / "b/source/imgs/7.tif"
    shutil.copyfile(tmp_path / "a/source/imgs/1.tif", test_image)
    result = verify({"a": first, "b": second})
    assert result.problems == ["a train and b test: 1 pairs of equal images, such as 1.tif = 7.tif"]
    picture = write_image(tmp_path / "large.png", 0, (300, 300))
    Image.open(picture).resize((200, 200)).save(test_image)
    Image.open(picture).save(tmp_path / "a/source/imgs/1.tif")
    assert verify({"a": first, "b": second}).notes == verify({"a": first, "b": second}, None).notes
    near = verify({"a": first, "b": second}, near=10)
    assert any(note.startswith("a train and b test: 1 pairs of nearly equal images") for note in near.notes)
    assert near.problems == []


def test_broken_images_ids_and_ground_truth_are_problems(tmp_path: Path) -> None:
    out = ready(tmp_path)
    (tmp_path / "source/imgs/4.tif").write_bytes(b"II*\0")
    (tmp_path / "source/imgs/5.tif").unlink()
    truth = out / "annotations/test_gt.json"
    truth.write_text(truth.read_text().replace("Image 7 has caption 2", "Image 7 had caption 2"))
    train = out / "annotations/train.json"
    train.write_text(train.read_text().replace('"image_id": 2}', '"image_id": 8}'))
    problems = verify({"toy": out}).problems
    assert problems[0].startswith("toy: 4.tif: image does not open")
    assert problems[1:] == [
        "toy: 5.tif: image is missing",
        "toy: id 8 is both 3.tif and 9.tif",
        f"{truth}: differs from test.json at 1 images, id 7",
    ]


def test_ids_that_are_text_and_no_ground_truth_are_no_problem(tmp_path: Path) -> None:
    out = ready(tmp_path)
    for path in (out / "annotations").iterdir():
        content = json.loads(path.read_text())
        for record in content if isinstance(content, list) else content["annotations"]:
            record["image_id"] = f"coco_{record['image_id']}"
        path.write_text(json.dumps(content))
    assert verify({"toy": out}).problems == []
    (out / "annotations/val_gt.json").unlink()
    result = verify({"toy": out})
    assert result.problems == []
    assert "toy: no val_gt.json; the captions of val.json are scored against" in result.notes
    truth = out / "annotations/test_gt.json"
    truth.write_text(truth.read_text().replace('"coco_', '"'))
    assert verify({"toy": out}).problems == [f"{truth}: differs from test.json at 6 images, id 6"]


def test_a_folder_that_is_not_prepared_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no annotations/train.json")


def test_caption_statistics() -> None:
    found = caption_statistics(
        {1: ["Many planes .", "many  planes.", "Two roofs’ tiles"], 2: [" ."], 5: ["one one"] * 2}
    )
    assert found["captions"] == 6
    assert found["distinct_captions"] == 4
    assert found["captions_an_image"] == {1: 1, 2: 1, 3: 1}
    assert (found["images_with_repeats"], found["images_with_one_caption_repeated"]) == (2, 1)
    assert found["without_a_word"] == [" ."]
    assert found["non_ascii"] == ["Two roofs’ tiles"]
    assert found["odd_white_space"] == 2
    assert (found["words"]["shortest"], found["words"]["longest"]) == (0, 3)


def test_typing_errors_are_rare_words_one_edit_from_common_ones() -> None:
    words = {
        "building": 100,
        "buliding": 2,
        "buildng": 1,
        "buildings": 3,
        "river": 80,
        "rivers": 1,
        "crane": 1,
        "road": 90,
    }
    assert typing_errors(words) == {"buildng": "building", "buliding": "building"}
