"""Generic forms of caption data: each gives the same prepared dataset, and each mistake is named."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.datasets.makers import karpathy_record, write_image
from tests.prepare.test_prepare import load, run

IMAGES = {"a/1.jpg": "train", "b/1.jpg": "train", "2.jpg": "val", "3.jpg": "test"}
CAPTIONS = {name: [f'{name} one, "quoted"', f"{name} two"] for name in IMAGES}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for seed, name in enumerate(IMAGES):
        write_image(tmp_path / "source/pictures" / name, seed)
    return tmp_path / "source"


def check(out: Path) -> None:
    records = {split: load(out / f"annotations/{split}.json") for split in ("train", "val", "test")}
    found = {(r["image"], r["caption"], split) for split, group in records.items() for r in group}
    assert found == {(name, caption, IMAGES[name]) for name in IMAGES for caption in CAPTIONS[name]}
    ids = {r["image"]: r["image_id"] for group in records.values() for r in group}
    assert sorted(ids.values()) == [0, 1, 2, 3]
    assert "field:" in (out / "dataset_card.md").read_text()


def test_coco(source: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        names = [name for name in IMAGES if IMAGES[name] == split]
        content = {
            "images": [{"id": f"x{k}", "file_name": name} for k, name in enumerate(names)],
            "annotations": [
                {"image_id": f"x{k}", "caption": text}
                for k, name in enumerate(names)
                for text in CAPTIONS[name]
            ],
        }
        (source / f"{split}.json").write_text(json.dumps(content))
    files = [f"{split}={split}.json" for split in ("train", "val", "test")]
    done = run(
        "field", source, tmp_path / "o", "--form", "coco", "--images", "pictures", "--annotations", *files
    )
    assert done.returncode == 0, done.stderr
    check(tmp_path / "o")
    bare = run(
        "field", source, tmp_path / "p", "--form", "coco", "--images", "pictures", "--annotations", "val.json"
    )
    assert "val.json: a COCO file has no splits; declare its split as train=val.json" in bare.stderr


def test_karpathy(source: Path, tmp_path: Path) -> None:
    records = [karpathy_record(name, k, IMAGES[name], CAPTIONS[name]) for k, name in enumerate(IMAGES)]
    records[0].update(filename="1.jpg", filepath="a", split="restval")
    (source / "all.json").write_text(json.dumps({"images": records}))
    arguments = ("--form", "karpathy", "--images", "pictures", "--annotations", "all.json")
    assert run("field", source, tmp_path / "o", *arguments).returncode == 0
    check(tmp_path / "o")


def test_csv_with_columns_of_other_names(source: Path, tmp_path: Path) -> None:
    with (source / "all.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "file", "text"])
        writer.writerows([IMAGES[name], name, caption] for name in IMAGES for caption in CAPTIONS[name])
    arguments = ("--form", "csv", "--images", "pictures", "--annotations", "all.csv", "--columns")
    out = tmp_path / "o"
    assert run("field", source, out, *arguments, "image=file", "caption=text", "split=part").returncode == 0
    check(out)
    wrong = run("field", source, out, *arguments, "image=file")
    assert f"{source}/all.csv: line 1: no column 'caption'; the header has part, file, text" in wrong.stderr
    assert (
        "--columns picture: wanted KEY=COLUMN" in run("field", source, out, *arguments, "picture=file").stderr
    )


def test_jsonl_with_lists_and_a_file_a_split(source: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        rows = [{"image": name, "caption": CAPTIONS[name]} for name in IMAGES if IMAGES[name] == split]
        (source / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    files = [f"{split}={split}.jsonl" for split in ("train", "val", "test")]
    arguments = ("--form", "jsonl", "--images", "pictures", "--annotations", *files)
    assert run("field", source, tmp_path / "o", *arguments).returncode == 0
    check(tmp_path / "o")
    (source / "val.jsonl").write_text('{"image": "2.jpg", "caption": "x"}\n{"image":')
    assert "val.jsonl: line 2: not JSON" in run("field", source, tmp_path / "o", *arguments).stderr


def test_folders_with_text_files(tmp_path: Path) -> None:
    for seed, (name, split) in enumerate(IMAGES.items()):
        path = write_image(tmp_path / "source" / split / name, seed)
        path.with_suffix(".txt").write_text("\n".join(CAPTIONS[name]) + "\n\n")
    write_image(tmp_path / "source/test/silent.jpg", 9)
    done = run("field", tmp_path / "source", tmp_path / "o", "--form", "text")
    assert "left out: test/silent.jpg: no caption" in done.stdout
    train = load(tmp_path / "o/annotations/train.json")
    assert [(r["image"], r["image_id"]) for r in train] == [("train/a/1.jpg", 0)] * 2 + [
        ("train/b/1.jpg", 1)
    ] * 2
    assert train[0]["caption"] == CAPTIONS["a/1.jpg"][0]
    done = run("field", tmp_path / "source/train", tmp_path / "p", "--form", "text")
    assert "no folder train/, val/ or test/; splits are declared by folders" in done.stderr


def test_every_image_that_opens_is_found_by_its_suffix(tmp_path: Path) -> None:
    suffixes = (".jpe", ".jfif", ".mpo", ".avif", ".j2k", ".JPX", ".btf", ".WebP")
    for suffix in suffixes:
        path = write_image(tmp_path / f"source/train/{suffix[1:]}.png", len(suffix))
        path.with_suffix(".txt").write_text("a river")
        path.rename(path.with_suffix(suffix))
    done = run("field", tmp_path / "source", tmp_path / "o", "--form", "text", "--strict")
    assert done.returncode == 0, done.stdout
    assert len(load(tmp_path / "o/annotations/train.json")) == len(suffixes)


def test_an_image_declared_in_two_splits_is_named(source: Path, tmp_path: Path) -> None:
    rows = [{"image": "2.jpg", "caption": "x", "split": split} for split in ("train", "test")]
    (source / "all.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    arguments = ("--form", "jsonl", "--images", "pictures", "--annotations")
    done = run("field", source, tmp_path / "o", *arguments, "all.jsonl")
    assert "all.jsonl: line 2 (2.jpg): split 'test', but 'train' at line 1" in done.stderr
    (source / "a.jsonl").write_text(json.dumps(rows[0]))
    done = run("field", source, tmp_path / "o", *arguments, "train=a.jsonl", "test=a.jsonl")
    assert "left out: line 1 2.jpg: image is listed before, as line 1" in done.stdout


def test_what_is_not_given_is_named(source: Path, tmp_path: Path) -> None:
    assert "none of ucm_caption, sydney_caption" in run("field", source, tmp_path / "o").stderr
    assert "form csv needs annotation files" in run("field", source, tmp_path / "o", "--form", "csv").stderr
    done = run(
        "field", source, tmp_path / "o", "--form", "csv", "--images", "gone", "--annotations", "all.csv"
    )
    assert f"{source}/gone: image folder is missing" in done.stderr
    done = run("field", source, tmp_path / "o", "--form", "csv", "--annotations", "gone.csv")
    assert f"{source}/gone.csv: no such file" in done.stderr
    done = run("field", source, tmp_path / "o", "--form", "csv", "--annotations", "tset=x.csv")
    assert "split 'tset' is none of train, val, test" in done.stderr


def test_files_of_other_systems_are_passed_over_and_nothing_is_dropped_in_silence(tmp_path: Path) -> None:
    for name in (
        "train/a.png",
        "train/B.JPG",
        "train/Thumbs.png",
        "val/c.png",
        "validation/d.png",
        "docs/e.png",
    ):
        write_image(tmp_path / "source" / name, len(name))
    texts = {
        "train/a.txt": "one\u2028line\r\ntwo\r\n",
        "train/b.TXT": "\ufeffthree",
        "train/gone.txt": "x",
        "val/c.txt": "five",
        "validation/d.txt": "six",
    }
    for name, text in texts.items():
        (tmp_path / "source" / name).write_text(text, newline="")
    for name in ("train/._a.png", "train/._a.txt", "val/.DS_Store", "__MACOSX/._c.txt"):
        (tmp_path / "source" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "source" / name).write_bytes(b"\0\xff")
    done = run("field", tmp_path / "source", tmp_path / "o", "--form", "text")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("left out")] == [
        "left out: train/Thumbs.png: no caption",
        "left out: train/gone.txt train/gone: image is missing",
        "left out: validation/d.png: split 'validation' is none of train, val, test",
    ]
    train = load(tmp_path / "o/annotations/train.json")
    assert [r["caption"] for r in train] == ["three", "one\u2028line", "two"]
    write_image(tmp_path / "source/train/a.jpg", 1)
    done = run("field", tmp_path / "source", tmp_path / "p", "--form", "text")
    assert done.stderr.endswith("a.txt: could be of train/a.jpg or of train/a.png; rename one\n")


def test_a_name_that_is_no_utf_8_is_named_and_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "source/train/a.png", 1).with_suffix(".txt").write_text("a lake")
    odd = os.fsdecode(b"caf\xe9.png")
    write_image(tmp_path / "source/train" / odd, 2).with_suffix(".txt").write_text("a pond")
    done = run("field", tmp_path / "source", tmp_path / "o", "--form", "text")
    assert (done.returncode, done.stderr) == (0, "")
    assert "train/caf\\udce9.png: its name is not UTF-8; rename the file" in done.stdout
    assert "caf\\udce9.png: its name" in (tmp_path / "o/dataset_card.md").read_text()


def test_empty_captions_are_counted_and_names_found(source: Path, tmp_path: Path) -> None:
    rows = [{"image": r"a\1.JPG ", "caption": ["x", " ", ""]}, {"image": "./2", "caption": ["y"]}]
    (source / "all.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    arguments = ("--form", "jsonl", "--images", "pictures", "--annotations", "train=all.jsonl")
    done = run("field", source, tmp_path / "o", *arguments)
    assert "note: a/1.jpg: 2 of 3 captions are empty and left out" in done.stdout
    assert [r["image"] for r in load(tmp_path / "o/annotations/train.json")] == ["a/1.jpg", "2.jpg"]


def test_coco_ids_of_two_kinds_are_told_apart(source: Path, tmp_path: Path) -> None:
    images = [{"id": k, "file_name": name} for k, name in enumerate(IMAGES)]
    content = {"images": images, "annotations": [{"image_id": "1", "caption": "x"}]}
    (source / "t.json").write_text(json.dumps(content))
    arguments = ("--form", "coco", "--images", "pictures", "--annotations", "test=t.json")
    message = "t.json: annotations[0]: image_id '1' is none of the file's images: it is text, 1 is a number;"
    assert message in run("field", source, tmp_path / "o", *arguments).stderr


DRAWN = ("--form", "auto", "--draw", "val=0.1", "test=0.25")


def captioned(folder: Path, names: Iterable[str]) -> None:
    """Pictures, each with a text beside it."""
    for seed, name in enumerate(names):
        write_image(folder / name, seed).with_suffix(".txt").write_text(f"it is {name}")


def found_in(out: Path) -> dict[str, set[object]]:
    """Split → images of a prepared dataset."""
    files = {path.stem: path for path in (out / "annotations").glob("*.json") if "_gt" not in path.name}
    return {split: {record["image"] for record in load(path)} for split, path in files.items()}


@pytest.mark.parametrize("form", ["text", "csv", "jsonl", "coco"])
def test_splits_are_drawn_where_that_is_asked_for_and_the_card_says_so(tmp_path: Path, form: str) -> None:
    """Whatever form the captions have, they are found, and the same images are drawn."""
    names = [f"{number}.jpg" for number in range(20)]
    for seed, name in enumerate(names):
        write_image(tmp_path / "s" / name, seed)
    if form == "csv":
        rows = "".join(f"{name},it is {name}\n" for name in [*names, *(f"none{k}.jpg" for k in range(40))])
        (tmp_path / "s/captions.csv").write_text(f"image,caption\n{rows}")
    elif form == "jsonl":
        lines = [json.dumps({"image": name, "caption": [f"it is {name}"]}) for name in names]
        (tmp_path / "s/captions.jsonl").write_text("\n".join(lines))
    elif form == "coco":
        images = [{"id": k, "file_name": name} for k, name in enumerate(names)]
        captions = [{"image_id": k, "caption": f"it is {name}"} for k, name in enumerate(names)]
        (tmp_path / "s/captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    else:
        for name in names:
            (tmp_path / "s" / name).with_suffix(".txt").write_text(f"it is {name}")
    done = run("field", tmp_path / "s", tmp_path / "o", *DRAWN)
    assert done.returncode == 0, done.stderr
    note = "splits were drawn, not declared: 10% for val and 25% for test"
    assert f"note: {note}" in done.stdout
    assert note in (tmp_path / "o/dataset_card.md").read_text()
    found = {split: load(tmp_path / f"o/annotations/{split}.json") for split in ("train", "val", "test")}
    assert {split: len(records) for split, records in found.items()} == {"train": 13, "val": 2, "test": 5}
    assert {record["image"] for record in found["test"]} == {"0.jpg", "1.jpg", "5.jpg", "14.jpg", "19.jpg"}
    assert all(
        record["caption"] == f"it is {record['image']}" for group in found.values() for record in group
    )


def test_an_image_that_comes_later_tests_nothing_that_was_trained_on(tmp_path: Path) -> None:
    captioned(tmp_path / "s", [f"{number}.jpg" for number in range(20)])
    trained: set[object] = set()
    for number in range(20, 30):
        assert run("field", tmp_path / "s", tmp_path / "o", *DRAWN, "--overwrite").returncode == 0
        splits = found_in(tmp_path / "o")
        assert not trained & splits["test"]
        trained = splits["train"]
        captioned(tmp_path / "s", [f"{number}.jpg"])


def declared_by_folders(folder: Path, parts: dict[str, str], form: str) -> None:
    names = [f"{parts[split]}/{name}" for name, split in IMAGES.items()]
    captioned(folder, names)
    if form != "text":
        for path in folder.rglob("*.txt"):
            path.unlink()
    if form == "csv":
        rows = "".join(f"{name},it is {name}\n" for name in names)
        (folder / "captions.csv").write_text(f"image,caption\n{rows}")
    elif form == "coco":
        images = [{"id": k, "file_name": name} for k, name in enumerate(names)]
        captions = [{"image_id": k, "caption": f"it is {name}"} for k, name in enumerate(names)]
        (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))


@pytest.mark.parametrize("form", ["text", "csv", "coco"])
@pytest.mark.parametrize("packed", [False, True])
def test_folders_that_declare_splits_are_not_drawn_over(tmp_path: Path, form: str, packed: bool) -> None:
    """By whatever letters, and in an archive that holds them in a folder of its own."""
    parts = {"train": "./all/Train", "val": "all/validation", "test": "all//TEST"}
    declared_by_folders(tmp_path / "s/mine", parts, form)
    source = tmp_path / "s/mine"
    (source / "README.md").touch()
    if packed:
        source = Path(shutil.make_archive(str(tmp_path / "mine"), "zip", tmp_path / "s"))
    done = run("field", source, tmp_path / "o", *DRAWN, "--every-split")
    assert done.returncode == 0, done.stderr
    assert "drawn" not in done.stdout
    expected = {
        split: {f"{part}/{name}" for name in IMAGES if IMAGES[name] == split}
        for split, part in {"train": "all/Train", "val": "all/validation", "test": "all/TEST"}.items()
    }
    assert found_in(tmp_path / "o") == expected


def test_a_column_that_declares_splits_is_not_drawn_over(tmp_path: Path) -> None:
    captioned(tmp_path / "s", IMAGES)
    rows = "".join(f"{name},it is {name},{split.upper()}\n" for name, split in IMAGES.items())
    (tmp_path / "s/captions.csv").write_text(f"image,caption,split\n{rows}")
    assert run("field", tmp_path / "s", tmp_path / "o", *DRAWN).returncode == 0
    assert found_in(tmp_path / "o")["train"] == {"a/1.jpg", "b/1.jpg"}
    records = [{"image": name, "caption": "x", "split": split} for name, split in IMAGES.items()]
    (tmp_path / "s/captions.csv").unlink()
    records[0]["split"] = None
    (tmp_path / "s/captions.jsonl").write_text("\n".join(map(json.dumps, records)))
    done = run("field", tmp_path / "s", tmp_path / "p", *DRAWN)
    assert "left out: line 1 a/1.jpg: has no split" in done.stdout
    assert found_in(tmp_path / "p")["train"] == {"b/1.jpg"}


def test_a_column_without_a_split_declares_nothing_and_one_that_is_named_must_be_there(
    tmp_path: Path,
) -> None:
    names = [f"{number}.jpg" for number in range(8)]
    for seed, name in enumerate(names):
        write_image(tmp_path / "s/pictures" / name, seed)
    rows = "".join(f"{name},it is {name}, \n" for name in names)
    (tmp_path / "s/captions.csv").write_text(f"image,caption,split\n{rows}")
    arguments = ("field", tmp_path / "s", tmp_path / "o", *DRAWN, "--images", "pictures")
    assert "splits were drawn" in run(*arguments).stdout
    assert "no column 'part'" in run(*arguments, "--columns", "split=part").stderr
    assert (
        "no usable image is for test; add some, or draw some"
        in run(*arguments[:5], "--draw", "val=0.5", "--images", "pictures", "--every-split").stderr
    )
    (tmp_path / "s/captions.csv").unlink()
    for name in names:
        (tmp_path / "s/pictures" / name).with_suffix(".txt").write_text(f"it is {name}")
    assert (
        "train      5 images" in run(*arguments, "--overwrite").stdout
    )  # the folder that is named, not one below


def test_a_class_that_is_called_train_declares_nothing(tmp_path: Path) -> None:
    captioned(tmp_path / "s", [f"{name}/{number}.jpg" for name in ("train", "ship") for number in range(5)])
    done = run("field", tmp_path / "s", tmp_path / "o", *DRAWN)
    assert "splits were drawn" in done.stdout
    assert {split: len(images) for split, images in found_in(tmp_path / "o").items()} == {
        "train": 7,
        "val": 1,
        "test": 2,
    }


def test_a_split_without_an_image_is_said_before_anything_is_written(tmp_path: Path) -> None:
    captioned(tmp_path / "s", ["train/1.jpg", "test/2.jpg", "other/3.jpg"])
    done = run("field", tmp_path / "s", tmp_path / "o", *DRAWN, "--every-split")
    assert done.returncode == 1
    assert "no usable image is for val; add some, or declare no splits" in done.stderr
    assert "left out, the first: other/3.jpg: split 'other' is none of" in done.stderr
    assert not (tmp_path / "o").exists()
    captioned(tmp_path / "few", ["1.jpg", "2.jpg"])
    done = run("field", tmp_path / "few", tmp_path / "o", *DRAWN)
    assert "2 usable images are too few to draw splits from" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--draw", "train=0.5"], "--draw train=0.5: wanted val and test"),
        (["--draw", "val=0.5", "test=0.5"], "together less than 1"),
        (["--draw", "val"], "--draw val: wanted SPLIT=SHARE"),
        ([], "neither a column split nor folders train/, val/ and test/ declare splits; --draw them"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, arguments: list[str], said: str) -> None:
    captioned(tmp_path / "s", ["1.jpg"])
    done = run("field", tmp_path / "s", tmp_path / "o", "--form", "auto", *arguments)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_two_files_that_could_hold_the_captions_are_both_named(tmp_path: Path) -> None:
    write_image(tmp_path / "s/1.jpg", 0)
    for name in ("a.csv", "b.csv"):
        (tmp_path / "s" / name).write_text("image,caption,split\n1.jpg,one,train\n")
    assert "a.csv or b.csv" in run("field", tmp_path / "s", tmp_path / "o", "--form", "auto").stderr
