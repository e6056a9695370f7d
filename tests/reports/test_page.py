"""The page in a browser: nothing is fetched, nothing overflows, tables sort, images are searched and chosen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
SIZES = ({"width": 390, "height": 844}, {"width": 820, "height": 1100}, {"width": 1280, "height": 900})


@pytest.fixture
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM}: is not there")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


def test_a_reader_sorts_searches_and_chooses(browser: Any, page: Path) -> None:
    context = browser.new_context(offline=True, color_scheme="dark")
    tab, said = context.new_page(), []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url))
    tab.goto(page.as_uri())
    for size in SIZES:
        tab.set_viewport_size(size)
        assert tab.evaluate("document.documentElement.scrollWidth") == size["width"]
    tab.set_viewport_size(SIZES[0])
    # The first column stays in sight where the others are scrolled: it leaves them room.
    tab.evaluate("longest = document.querySelector('#every tbody th').firstChild")
    tab.evaluate("longest.data = 'a_long_name'.repeat(9)")
    assert tab.evaluate("longest.parentNode.offsetWidth") < SIZES[0]["width"] / 2
    tab.evaluate("longest.data = '1.png'")
    tab.set_viewport_size(SIZES[-1])
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 26)"
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not tab.locator("#images form").is_visible()
    tab.emulate_media(media="screen")

    files = "#every tbody tr:visible th"
    tab.click("#every thead th:nth-child(4)")  # CIDEr, the highest first
    assert tab.locator(files).last.inner_text() == "302.png"
    tab.click("#every thead th:nth-child(4)")
    assert tab.locator(files).first.inner_text() == "302.png"
    tab.fill("#every input", "farmland piece")
    assert tab.locator(files).all_inner_texts() == ["1.png"]

    cards = tab.locator(".card:visible")
    tab.fill("#images input", "airplanes parked")  # in the references of one
    assert cards.count() == 1
    tab.fill("#images input", "")
    assert cards.count() == 8
    tab.select_option("select[data-kinds]", "worst")
    tab.select_option("select[data-order]", "value,1")
    assert "302.png" in cards.first.inner_text()
    assert said == []
