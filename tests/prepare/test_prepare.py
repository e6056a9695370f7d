"""Preparing published datasets: ids, splits, what is left out and why, second runs, messages."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bita.prepare.__main__ import main
from bita.prepare.prepare import prepare, published_source
from tests.datasets.makers import karpathy_record, nwpu_source, ucm_source, write_image

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the script's main in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def load(path: Path) -> list[dict[str, object]]:
    content = json.loads(path.read_text())
    assert isinstance(content, list)
    return content


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_ucm_becomes_records_ground_truth_link_and_card(tmp_path: Path) -> None:
    source, out = ucm_source(tmp_path / "source"), tmp_path / "out"
    done = run("ucm_caption", source, out)
    assert done.returncode == 0, done.stderr
    train = load(out / "annotations/train.json")
    assert train[0] == {"image": "1.tif", "caption": "Image 0 has caption 0 .", "image_id": 0}
    assert len(train) == 10
    assert [record["image_id"] for record in load(out / "annotations/test.json")] == [4] * 5 + [5] * 5
    truth = json.loads((out / "annotations/test_gt.json").read_text())
    assert [image["id"] for image in truth["images"]] == [4, 5]
    assert [entry["id"] for entry in truth["annotations"]] == list(range(10))
    assert truth["annotations"][7] == {"id": 7, "image_id": 5, "caption": "Image 5 has caption 2 ."}
    assert (out / "images").resolve() == (source / "imgs").resolve()
    assert not (out / "annotations/train_gt.json").exists()
    assert "| train | 2 | 1680 | 10 | 10 | 2 × 5 |" in (out / "dataset_card.md").read_text()


def test_the_command_line_runs_from_anywhere_and_prints_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/prepare_data.py"), "ucm_caption", "gone", "out"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: gone: source is missing\n")


def test_second_run_verifies_and_writes_nothing(tmp_path: Path) -> None:
    source, out = ucm_source(tmp_path / "source"), tmp_path / "out"
    assert run("ucm_caption", source, out).returncode == 0
    before = snapshot(out)
    done = run("ucm_caption", source, out)
    assert done.returncode == 0
    assert "verified: nothing had to be written" in done.stdout
    assert snapshot(out) == before


def test_an_interrupted_run_is_completed_and_a_changed_source_is_refused(tmp_path: Path) -> None:
    source, out = ucm_source(tmp_path / "source"), tmp_path / "out"
    prepare(published_source("ucm_caption", source, out), out)
    (out / "annotations/val.json").unlink()
    assert prepare(published_source("ucm_caption", source, out), out).written == ["annotations/val.json"]
    text = (source / "dataset.json").read_text()
    (source / "dataset.json").write_text(text.replace("Image 0 has", "Image 0 had"))
    done = run("ucm_caption", source, out)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "annotations/train.json, dataset_card.md" in done.stderr
    assert run("ucm_caption", source, out, "--overwrite").returncode == 0
    assert load(out / "annotations/train.json")[0]["caption"] == "Image 0 had caption 0 ."
    (source / "dataset.json").write_text(text.replace('"val"', '"train"'))
    assert "annotations/val.json" in run("ucm_caption", source, out).stderr
    assert run("ucm_caption", source, out, "--overwrite").returncode == 0
    assert not list((out / "annotations").glob("val*"))


def test_nwpu_faults_are_listed_and_ids_are_unique_and_stable(tmp_path: Path) -> None:
    source, out = nwpu_source(tmp_path / "source"), tmp_path / "out"
    done = run("nwpu_caption", source, out)
    assert done.returncode == 0, done.stderr
    left_out = [line for line in done.stdout.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 4
    assert left_out[0] == "left out: airplane[3] airplane/003.jpg: image is missing"
    assert left_out[1].startswith("left out: airplane[4] airplane/004.jpg: image does not open")
    assert left_out[2] == "left out: beach[3] beach/003.jpg: split 'tset' is none of train, val, test"
    assert left_out[3] == "left out: beach[5] beach/005.jpg: no caption"
    assert "note: beach/004.jpg: 4 captions, where most images have 5" in done.stdout
    records = [
        record for split in ("train", "val", "test") for record in load(out / f"annotations/{split}.json")
    ]
    images = {record["image_id"]: record["image"] for record in records}
    assert len(images) == len(set(images.values())) == 8
    assert (images[0], images[6]) == ("airplane/000.jpg", "beach/000.jpg")
    write_image(source / "NWPU_images/airplane/003.jpg", 3)
    assert run("nwpu_caption", source, out, "--overwrite").returncode == 0
    again = [
        record for split in ("train", "val", "test") for record in load(out / f"annotations/{split}.json")
    ]
    assert {record["image_id"]: record["image"] for record in again} == {**images, 3: "airplane/003.jpg"}


def test_strict_ends_in_an_error_code(tmp_path: Path) -> None:
    assert run("nwpu_caption", nwpu_source(tmp_path / "a"), tmp_path / "out", "--strict").returncode == 1
    assert run("ucm_caption", ucm_source(tmp_path / "b"), tmp_path / "out2", "--strict").returncode == 0


@pytest.mark.parametrize("form", ["zip", "gztar"])
def test_archives_give_the_same_as_folders(tmp_path: Path, form: str) -> None:
    source = nwpu_source(tmp_path / "pack" / "NWPU-Captions")
    archive = Path(shutil.make_archive(str(tmp_path / "nwpu"), form, tmp_path / "pack"))
    out, reference = tmp_path / "out", tmp_path / "reference"
    assert run("nwpu_caption", archive, out).returncode == 0
    assert run("nwpu_caption", source, reference).returncode == 0
    for name in ("train.json", "val.json", "test.json", "test_gt.json"):
        assert (out / "annotations" / name).read_bytes() == (reference / "annotations" / name).read_bytes()
    assert (out / "images/beach/000.jpg").is_file()
    before = snapshot(out)
    assert run("nwpu_caption", archive, out).returncode == 0
    assert snapshot(out) == before


def test_images_packed_beside_the_annotation_file(tmp_path: Path) -> None:
    source = ucm_source(tmp_path / "source")
    shutil.make_archive(str(source / "imgs"), "zip", source, "imgs")
    shutil.rmtree(source / "imgs")
    assert run("ucm_caption", source, tmp_path / "out").returncode == 0
    assert (tmp_path / "out/images/1.tif").is_file()


@pytest.mark.parametrize(("form", "suffix"), [("zip", ".tar.gz"), ("gztar", ".zip")])
def test_an_archive_is_read_by_its_content(tmp_path: Path, form: str, suffix: str) -> None:
    ucm_source(tmp_path / "source")
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), form, tmp_path / "source"))
    assert run("ucm_caption", packed.rename(tmp_path / f"ucm{suffix}"), tmp_path / "out").returncode == 0


def test_what_an_archive_is_instead_is_said(tmp_path: Path) -> None:
    ucm_source(tmp_path / "source")
    whole = Path(shutil.make_archive(str(tmp_path / "ucm"), "zip", tmp_path / "source")).read_bytes()
    for suffix in (".zip", ".tar"):
        for content, reason in (
            (whole[:-50], "the zip archive is cut off; fetch it again"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", "git lfs pull"),
            (b"<html><title>Quota exceeded</title></html>", "an HTML page (Quota exceeded)"),
            (bytes(600), ""),
            (b"no archive", ""),
        ):
            (tmp_path / f"x{suffix}").write_bytes(content)
            done = run("ucm_caption", tmp_path / f"x{suffix}", tmp_path / "out")
            assert done.returncode == 1
            assert done.stderr.startswith(f"error: {tmp_path / f'x{suffix}'}: ") or not reason
            assert reason in done.stderr
            assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("form", "suffix"), [("zip", ".zip"), ("gztar", ".tar.gz"), ("xztar", ".tar.xz")])
def test_a_damaged_archive_is_one_line_and_leaves_nothing(tmp_path: Path, form: str, suffix: str) -> None:
    ucm_source(tmp_path / "source")
    archive = Path(shutil.make_archive(str(tmp_path / "ucm"), form, tmp_path / "source"))
    content = bytearray(archive.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(byte ^ 0xFF for byte in content[middle : middle + 200])
    archive.write_bytes(content)
    done = run("ucm_caption", archive, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / f'ucm{suffix}'}: archive does not unpack (")
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))


def test_bytes_after_the_end_of_an_archive_are_none(tmp_path: Path) -> None:
    ucm_source(tmp_path / "source")
    archive = Path(shutil.make_archive(str(tmp_path / "ucm"), "gztar", tmp_path / "source"))
    archive.write_bytes(archive.read_bytes() + b"garbage")
    assert run("ucm_caption", archive, tmp_path / "out").returncode == 0


def test_what_was_edited_is_no_traceback_whatever_its_bytes_and_a_name_is_one_line(tmp_path: Path) -> None:
    source, out = ucm_source(tmp_path / "source"), tmp_path / "o L"
    content = json.loads((source / "dataset.json").read_text())
    (source / "imgs/1.tif").rename(source / "imgs/a\rb.tif")
    content["images"][0]["filename"] = "a\rb.tif"
    content["images"][0]["sentences"].append(content["images"][0]["sentences"][0] | {"raw": " "})
    (source / "dataset.json").write_text(json.dumps(content))
    assert "note: a b.tif: 1 of 6 captions" in run("ucm_caption", source, out).stdout
    assert "verified: nothing had to be written" in run("ucm_caption", source, out).stdout
    card = (out / "dataset_card.md").read_text()
    assert 'train: {storage: "o L/annotations/train.json"}' in card  # as the folder is called
    (out / "dataset_card.md").write_bytes(b"caf\xe9")
    done = run("ucm_caption", source, out)
    assert "differs from what the source gives (dataset_card.md)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_caption_under_a_key_of_another_spelling_is_refused(tmp_path: Path) -> None:
    source = nwpu_source(tmp_path / "source")
    annotation = source / "dataset_nwpu.json"
    content = json.loads(annotation.read_text())
    record = next(iter(content.values()))[0]
    for key in ("Raw_2", "raw3", "raw 4"):
        record[key] = "a caption that would be dropped"
        annotation.write_text(json.dumps(content))
        done = run("nwpu_caption", source, tmp_path / "out")
        assert f"field {key!r} is neither raw nor raw_N; rename it, or take it out" in done.stderr
        del record[key]


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.write_text("x")
    with tarfile.open(tmp_path / "evil.tar", "w") as file:
        file.add(payload, arcname="../../escaped")
    done = run("ucm_caption", tmp_path / "evil.tar", tmp_path / "a/b/out")
    assert done.returncode == 1
    assert "archive does not unpack" in done.stderr
    assert not list(tmp_path.rglob("escaped"))


def test_zip_files_of_windows_and_macos(tmp_path: Path) -> None:
    source = ucm_source(tmp_path / "source")
    content = json.loads((source / "dataset.json").read_text())
    content["images"][0]["filename"] = "caf\xe9.tif"
    with zipfile.ZipFile(tmp_path / "ucm.zip", "w") as file:
        file.writestr("dataset.json", json.dumps(content))
        file.writestr("__MACOSX/._dataset.json", b"\0")
        for path in (source / "imgs").iterdir():
            decomposed = "cafe\u0301.tif" if path.name == "1.tif" else path.name
            info = zipfile.ZipInfo("imgs/x")
            info.filename = f"imgs\\{decomposed}"
            file.writestr(info, path.read_bytes())
    assert run("ucm_caption", tmp_path / "ucm.zip", tmp_path / "out", "--strict").returncode == 0
    assert load(tmp_path / "out/annotations/train.json")[0]["image"] == "cafe\u0301.tif"
    assert not list((tmp_path / "out").rglob("__MACOSX"))


def test_converted_images_are_found_under_their_new_suffix(tmp_path: Path) -> None:
    source, out = ucm_source(tmp_path / "source"), tmp_path / "out"
    for path in list((source / "imgs").iterdir()):
        write_image(path.with_suffix(".jpg"), int(path.stem))
        path.unlink()
    assert run("ucm_caption", source, out, "--strict").returncode == 0
    assert load(out / "annotations/train.json")[0]["image"] == "1.jpg"


def test_copied_images_are_files_of_their_own(tmp_path: Path) -> None:
    source, out = nwpu_source(tmp_path / "source"), tmp_path / "out"
    assert run("nwpu_caption", source, out, "--copy-images").returncode == 0
    before = snapshot(out)
    assert run("nwpu_caption", source, out, "--copy-images").returncode == 0
    assert snapshot(out) == before
    assert not (out / "images").is_symlink()
    assert sorted(path.name for path in (out / "images/beach").iterdir()) == [
        "000.jpg",
        "001.jpg",
        "002.jpg",
        "004.jpg",
    ]
    copy = out / "images/beach/000.jpg"
    content = copy.read_bytes()
    copy.write_bytes(bytes(len(content)))  # of the right size, and another picture
    assert run("nwpu_caption", source, out, "--copy-images").returncode == 0
    assert copy.read_bytes() == content


def test_repeats_and_paths_that_leave_the_folder_are_left_out(tmp_path: Path) -> None:
    source = ucm_source(tmp_path / "source")
    content = json.loads((source / "dataset.json").read_text())
    content["images"].append(karpathy_record("1.tif", 6, "test", ["again"]))
    content["images"].append(karpathy_record("../imgs/2.tif", 7, "test", ["outside"]))
    content["images"].append(karpathy_record("3.tif", 8, "test", [" . "]))
    content["images"][0]["sentences"][2]["raw"] = " ."
    (source / "dataset.json").write_text(json.dumps(content))
    report = prepare(published_source("ucm_caption", source, tmp_path / "out"), tmp_path / "out")
    assert report.left_out == [
        ("images[6] 1.tif", "image is listed before, as images[0]"),
        ("images[7] ../imgs/2.tif", "path leaves the image folder"),
        ("images[8] 3.tif", "no caption"),
    ]
    assert report.notes == ["1.tif: caption ' .' has no word"]
    assert len(report.kept[0].captions) == 5


def test_what_cannot_be_read_is_one_line_that_names_it(tmp_path: Path) -> None:
    source = ucm_source(tmp_path / "source")
    annotation = source / "dataset.json"
    content = json.loads(annotation.read_text())
    cases: list[tuple[object, str]] = [
        ("[1, 2", f"{annotation}: not JSON (character 6:"),
        (json.dumps([]), f"{annotation}: wanted an object, found a list"),
        (json.dumps({"pictures": []}), f"{annotation}: field 'images' is missing"),
    ]
    for key in ("filename", "split", "sentences"):
        changed = json.loads(json.dumps(content))
        del changed["images"][3][key]
        cases.append((json.dumps(changed), f"{annotation}: images[3]"))
    for text, message in cases:
        annotation.write_text(str(text))
        done = run("ucm_caption", source, tmp_path / "out")
        assert done.returncode == 1
        assert message in done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert "field 'sentences' is missing" in done.stderr


def test_missing_source_annotation_and_images_are_named(tmp_path: Path) -> None:
    source = ucm_source(tmp_path / "source")
    assert (
        f"error: {tmp_path}/gone: source is missing"
        in run("ucm_caption", tmp_path / "gone", tmp_path / "o").stderr
    )
    assert "dataset_rsicd.json is missing" in run("rsicd_caption", source, tmp_path / "o").stderr
    shutil.rmtree(source / "imgs")
    done = run("ucm_caption", source, tmp_path / "o")
    assert done.returncode == 1
    assert f"{source}: image folder imgs/ is missing" in done.stderr
    assert not (tmp_path / "o").exists()


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    source = ucm_source(tmp_path / "source")
    for path in (source / "imgs").iterdir():
        path.unlink()
    done = run("ucm_caption", source, tmp_path / "out")
    assert done.returncode == 1
    assert (
        "none of 6 records is usable; left out, the first: images[0] 1.tif: image is missing" in done.stderr
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "folder", "counts"),
    [
        ("ucm_caption", "ucm_captions", (1680, 210, 210)),
        ("rsicd_caption", "rsicd_captions", (8734, 1094, 1093)),
    ],
)
def test_real_datasets(
    bita_data: Path, tmp_path: Path, name: str, folder: str, counts: tuple[int, ...]
) -> None:
    assert run(name, bita_data / folder, tmp_path, "--strict").returncode == 0
    found = []
    for split in ("train", "val", "test"):
        records = load(tmp_path / f"annotations/{split}.json")
        found.append(len({record["image_id"] for record in records}))
        assert len(records) == 5 * found[-1]
    assert tuple(found) == counts
