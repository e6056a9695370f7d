"""Names of image files: found however they are spelled, never mistaken for one another."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from bita.datasets.names import ImageFolder, is_system_file

CAFE = unicodedata.normalize("NFC", "café.png")


@pytest.mark.parametrize(
    ("there", "listed", "found"),
    [
        ("a.jpg", "a.jpg", ["a.jpg"]),
        ("a.jpg", "a.JPG", ["a.jpg"]),
        ("a.jpg", "./a.jpg", ["a.jpg"]),
        ("a.jpg", "a.jpg ", ["a.jpg"]),
        ("a.jpg", "a", ["a.jpg"]),
        ("a.jpg", "a.tif", ["a.jpg"]),
        ("scene.v2.jpg", "scene.v2", ["scene.v2.jpg"]),
        ("img_1.jpg", "img_1.5", []),
        ("Train/b.JPG", r"train\b.jpg", ["Train/b.JPG"]),
        (unicodedata.normalize("NFD", CAFE), CAFE, [unicodedata.normalize("NFD", CAFE)]),
        (CAFE, unicodedata.normalize("NFD", CAFE), [CAFE]),
        ("A.jpg a.jpg", "A.jpg", ["A.jpg"]),
        ("A.jpg a.jpg", "A.JPG", ["A.jpg", "a.jpg"]),
        ("1.jpg 1.png", "1.tif", ["1.jpg", "1.png"]),
        ("._a.jpg a.png", "a.tif", ["a.png"]),
        ("a.jpg", "../a.jpg", []),
        ("a.jpg", "x" * 5000, []),
        ("a.jpg", "", []),
    ],
)
def test_a_listed_name_finds_its_files(tmp_path: Path, there: str, listed: str, found: list[str]) -> None:
    folder = tmp_path / "images"
    for name in there.split(" "):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    assert ImageFolder(folder).find(listed) == found


def test_a_link_that_leads_to_itself_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "a.jpg").touch()
    folder = ImageFolder(tmp_path)
    assert (folder.find("loop.jpg"), folder.find("loop.jpg/b.jpg"), folder.find("A.jpg")) == (
        [],
        [],
        ["a.jpg"],
    )


def test_files_of_other_systems_are_told_apart() -> None:
    system = ("._a.txt", "x/.DS_Store", "__MACOSX/x/a.png", "Thumbs.db", r"x\desktop.ini", "x/@eaDir/a.jpg")
    assert all(map(is_system_file, system))
    assert not any(map(is_system_file, ("a.txt", ".hidden/a.png", "a._b.png", "thumbs/a.db")))
