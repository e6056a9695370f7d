"""`caption.py`: files, folders, patterns, lists; records that a second start goes on with; what does not open."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bita.cli import caption
from bita.errors import UserError
from bita.inference.jobs import progress, write_captions
from bita.inference.outputs import COLUMNS, RecordFile
from bita.inference.sources import find_images
from bita.processors.rgb import stretch_to_uint8
from tests.datasets.makers import write_image
from tests.inference.conftest import Pair


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, named as people name them, and what is none of an image's name."""
    images = tmp_path / "images"
    for number, name in enumerate(
        ("b.png", "a name.tif", "c#1.jpg", "deep/ü 面.PNG", "deep/er/line\nbreak.png")
    ):
        write_image(images / name, number, (40, 36))
    (images / "notes.md").write_text("not an image")
    (images / ".hidden.png").write_bytes(b"")
    return images


def run(pair: Pair, *arguments: str | Path) -> int:
    return caption(["--checkpoint", str(pair.run), "--device", "cpu", *map(str, arguments)])


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_folders_patterns_and_lists_are_found(
    pair: Pair, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = find_images([str(folder)])
    names = [str(path.relative_to(folder)) for path in everything]
    assert names == ["a name.tif", "b.png", "c#1.jpg", "deep/er/line\nbreak.png", "deep/ü 面.PNG"]
    assert find_images([str(folder / "**/*.png")]) == [folder / "b.png", folder / "deep/er/line\nbreak.png"]
    assert find_images([str(folder / "d*")]) == everything[3:]
    assert find_images([str(folder / "notes.md")]) == [folder / "notes.md"]  # who names it means it
    captions = [str(record).replace("\t", "\\t") for record in pair.captioner.stream(everything, score=False)]
    wanted = [
        "\t".join([str(path).replace("\n", "\\n"), caption])
        for path, caption in zip(everything, captions, strict=True)
    ]
    assert run(pair, folder / "b.png") == 0
    assert capsys.readouterr().out.splitlines() == [captions[1]]  # of one file that is named, nothing else
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    for way in ("b.png", "./b.png", "deep/../b.png", "~/b.png"):  # however its name is typed
        assert run(pair, way) == 0
        assert capsys.readouterr().out.splitlines() == [captions[1]]
    assert run(pair, folder / "b*") == 0
    assert capsys.readouterr().out.splitlines() == [wanted[1]]
    assert run(pair, folder) == 0
    assert capsys.readouterr().out.splitlines() == wanted
    listed = b"\0".join(os.fsencode(path) for path in reversed(everything))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
    assert run(pair, "-", folder / "b.png") == 0
    assert capsys.readouterr().out.splitlines() == [*reversed(wanted), wanted[1]]
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(f"\ufeff{folder}/b.png\r\n\n{folder}/no.png\n".encode()))
    )
    assert run(pair, "-") == 1
    printed = capsys.readouterr()
    missing = f"{folder}/no.png\terror: {folder}/no.png: image is missing"
    assert printed.out.splitlines() == [wanted[1], missing]
    assert printed.err.splitlines()[-1] == f"error: {folder}/no.png: image is missing"


def test_every_format_holds_the_same_records(
    pair: Pair, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = find_images([str(folder)])
    wanted = list(pair.captioner.stream(images, num_captions=2))
    for suffix in ("jsonl", "csv", "txt"):
        assert run(pair, folder, "--output", tmp_path / f"out.{suffix}", "--num-captions", "2") == 0
    assert capsys.readouterr().out == ""
    assert run(pair, folder, "--num-captions", "2") == 0
    assert capsys.readouterr().out == (tmp_path / "out.txt").read_text()
    assert run(pair, folder, "--output", tmp_path / "out.csv", "--num-captions", "2") == 0
    printed = capsys.readouterr()
    assert f"5 of 5 images are in {tmp_path}/out.csv already" in printed.err.splitlines()
    found = records(tmp_path / "out.jsonl")
    assert [tuple(record) for record in found] == [COLUMNS] * 5
    for record, own in zip(found, wanted, strict=True):
        assert record["caption"] == own.caption
        assert record["candidates"] == own.candidates
        assert record["log_probability"] == pytest.approx(own.log_probability, abs=1e-5)
        assert record["score"] == pytest.approx(own.score, abs=1e-5)
        assert (record["tokens"], record["model"], record["error"]) == (own.tokens, own.model, None)
        assert record["settings"] == "num_captions=2"
    assert [record["image"] for record in found][3] == f"{folder}/deep/er/line\\nbreak.png"
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, record in zip(rows, found, strict=True):
        assert json.loads(row["candidates"]) == record["candidates"]
        assert {name: row[name] for name in COLUMNS if name != "candidates"} == {
            name: "" if record[name] is None else str(record[name])
            for name in COLUMNS
            if name != "candidates"
        }
    lines = (tmp_path / "out.txt").read_text().split("\n")[:-1]
    for line, record in zip(lines, found, strict=True):
        assert line.split("\t") == [
            record["image"],
            *(text.replace("\t", "\\t") for text in record["candidates"]),
        ]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt"])
def test_an_interrupted_file_ends_like_one_that_was_not(
    pair: Pair, folder: Path, tmp_path: Path, suffix: str
) -> None:
    """Wherever it is cut: no image missing, none twice, every digit the same."""
    (folder / "broken.png").write_bytes(b"")
    images = find_images([str(folder)])

    def write(path: Path) -> bytes:
        with RecordFile(path, pair.captioner.hash, "") as out:
            assert write_captions(pair.captioner, images, out, batch_size=2) == 1
        return path.read_bytes()

    whole = write(tmp_path / f"whole.{suffix}")
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for cut in {0, 7, *ends, *(end - 3 for end in ends), *(end + 9 for end in ends[:-1])}:
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(whole[:cut])
        assert write(path) == whole, cut


def test_a_broken_image_is_a_record_until_it_is_mended(
    pair: Pair, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    (folder / "b.png").write_text("text")
    (folder / "c#1.jpg").write_bytes(b"")
    for _ in range(2):
        assert run(pair, folder, folder / "b.png", "--output", out) == 1
        assert (
            capsys.readouterr().err.splitlines()[-1]
            == f"error: 2 of 5 images have no caption; {out} says why"
        )
    found = {Path(record["image"]).name: record for record in records(out)}
    assert found["b.png"]["caption"] is None
    assert found["b.png"]["error"].startswith(
        f"{folder}/b.png: image does not open (its content is none of TIFF"
    )
    assert found["c#1.jpg"]["error"] == f"{folder}/c#1.jpg: image does not open (the file is empty)"
    assert sum(record["error"] is None for record in found.values()) == 3
    write_image(folder / "b.png", 0, (40, 36))
    (folder / "c#1.jpg").unlink()
    write_image(folder / "a name.tif", 77)
    assert run(pair, folder, "--output", out) == 0
    mended = {Path(record["image"]).name: record for record in records(out)}
    assert len(records(out)) == 5
    assert mended["b.png"]["caption"] == str(pair.captioner.caption(folder / "b.png"))
    assert mended["a name.tif"]["sha256"] != found["a name.tif"]["sha256"]
    assert mended["c#1.jpg"] == found["c#1.jpg"]  # no longer asked for


def test_files_of_others_are_not_written_into(pair: Pair, folder: Path, tmp_path: Path) -> None:
    image = [folder / "b.png"]
    out = tmp_path / "out.csv"
    with RecordFile(out, "one", "") as file:
        write_captions(pair.captioner, image, file)
        with pytest.raises(UserError, match="another process writes this file"):
            RecordFile(out, "one", "")
    with pytest.raises(
        UserError, match=r"line 2: was written with settings 'as in the run', not 'num_beams=2'"
    ):
        RecordFile(out, pair.captioner.hash, "num_beams=2")
    with pytest.raises(UserError, match="line 2: was written with model"):
        RecordFile(out, "another", "")
    for name, content in (
        ("a.csv", "image,caption\n"),
        ("a.jsonl", '{"a": 1}\n'),
        ("b.jsonl", "a\n"),
        ("a.txt", "a\n"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match="choose another --output, or --overwrite"):
            RecordFile(tmp_path / name, "model", "")
        assert (tmp_path / name).read_text() == content
        RecordFile(tmp_path / name, "model", "", overwrite=True).__exit__()
        assert (tmp_path / name).read_text() in ("", ",".join(COLUMNS) + "\n")


def test_mistakes_are_one_line(
    pair: Pair,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    image = folder / "b.png"
    for arguments, message in (
        ([tmp_path / "empty"], "/empty: no image in this folder or below (looked for .jpg, "),
        ([folder / "x.png"], "x.png: no such file"),
        ([folder / "x*"], "x*: no file matches this pattern"),
        (["-"], "standard input names no image"),
        ([image, "--output", tmp_path / "out.xlsx"], "out.xlsx: its name must end in .csv, .jsonl, .txt"),
        ([image, "--output", tmp_path / "no/out.csv"], "out.csv: there is no folder"),
        (
            [image, "--output", tmp_path / "full.jsonl"],
            "full.jsonl: cannot be written (No space left on device);",
        ),
    ):
        assert run(pair, *arguments) == 1
        *_, said = capsys.readouterr().err.splitlines()
        assert said.startswith("error: ")
        assert message in said
    for option in ("--top-p", "--temperature", "--seed"):
        assert run(pair, image, option, "1") == 2
        assert capsys.readouterr().err.endswith(
            f"error: {option}: is of captions that are drawn; add --nucleus\n"
        )
    for arguments, more in ((["--beams", "1"], "--beams"), (["--nucleus"], "--num-captions")):
        assert run(pair, image, "--choose-by", "consensus", *arguments) == 2
        assert capsys.readouterr().err.endswith(f"one caption leaves no choice; set {more} above 1\n")
    for arguments in (["--batch-size", "0"], ["--top-p", "1.5"], ["--temperature", "0"], ["--beams", "0"]):
        with pytest.raises(SystemExit) as ended:
            run(pair, image, *arguments)
        assert ended.value.code == 2


def test_a_bar_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        terminal = True

        def isatty(self) -> bool:
            return self.terminal

    for terminal, shown in ((True, True), (False, True), (True, False)):
        screen = Terminal()
        screen.terminal = terminal
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("TERM", "xterm")
        with progress(3, shown) as step:
            for _ in range(3):
                step()
        assert ("3/3" in screen.getvalue()) == ("images/s" in screen.getvalue()) == (terminal and shown)


def test_odd_images_are_captioned_as_what_they_show(pair: Pair, tmp_path: Path) -> None:
    """Alpha, palette, CMYK, 16 bit, animation and orientation: the caption of the pixels that a viewer sees."""
    rgb = np.random.default_rng(5).integers(0, 256, (36, 40, 3)).astype(np.uint8)
    plain, few = Image.fromarray(rgb), Image.fromarray(rgb).quantize(64)
    deep = np.random.default_rng(6).integers(100, 3000, (36, 40)).astype(np.uint16)
    clear = np.dstack([rgb, np.full((36, 40), 9, np.uint8)])
    turned = Image.Exif()
    turned[274] = 6  # the camera was held upright
    inks = plain.convert("CMYK")
    wanted: dict[str, Any] = {}
    Image.fromarray(clear).save(tmp_path / "alpha.png")
    wanted["alpha.png"] = rgb
    few.save(tmp_path / "animated.gif", save_all=True, append_images=[plain.rotate(180).quantize(64)])
    wanted["animated.gif"] = few.convert("RGB")
    inks.save(tmp_path / "cmyk.tif")
    wanted["cmyk.tif"] = inks.convert("RGB")
    Image.fromarray(deep).save(tmp_path / "deep.png")
    wanted["deep.png"] = np.dstack([stretch_to_uint8(deep)] * 3)
    few.save(tmp_path / "palette.png")
    wanted["palette.png"] = few.convert("RGB")
    plain.save(tmp_path / "turned.png", exif=turned)
    wanted["turned.png"] = np.rot90(rgb, -1).copy()
    assert run(pair, tmp_path, "--output", tmp_path / "out.jsonl") == 0
    found = records(tmp_path / "out.jsonl")
    assert [Path(record["image"]).name for record in found] == list(wanted)
    for record, own in zip(found, pair.captioner.stream(wanted.values()), strict=True):
        assert record["caption"] == own.caption
        assert record["log_probability"] == pytest.approx(own.log_probability, abs=1e-5)
        assert record["score"] == pytest.approx(own.score, abs=1e-5)
    assert len({record["log_probability"] for record in found}) == 4  # two pairs show the same
