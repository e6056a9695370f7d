"""docs/architecture.md and its picture show the house that is there."""

from __future__ import annotations

import re
from pathlib import Path

from scripts.checks.draw_architecture import PICTURE, picture, rooms

PAGE = PICTURE.with_name("architecture.md").read_text(encoding="utf-8")
PACKAGE = Path(__file__).parents[1] / "bita"


def test_the_picture_is_up_to_date() -> None:
    same = PICTURE.read_text(encoding="utf-8") == picture()
    assert same, "docs/architecture.svg is of other imports; run: python scripts/checks/draw_architecture.py"


def test_the_page_names_every_room_and_no_file_that_is_gone() -> None:
    named = set(re.findall(r"`([\w/{},.]+)`", PAGE))
    assert set(rooms()) <= {name.rstrip("/") for name in named}
    for name in named:
        room, _, file = name.partition("/")
        if room in rooms() and file:
            path = PACKAGE / room / file
            assert path.exists() or path.with_suffix(".py").is_file(), name
