"""The page: what its parts show, and all of it in a browser, without a network."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import os
import re
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import rasterio
import uvicorn
from affine import Affine
from PIL import Image
from pyproj import Transformer

from bita.app.__main__ import listening, main
from bita.app.dropped import Dropped
from bita.app.engine import Engine, Limits
from bita.app.page import Page, mount
from bita.app.service import Service
from bita.inference.captioner import Captioner
from bita.inference.search import file_items, find, open_index, update
from tests.app.conftest import image
from tests.app.test_service import LIMITS, giant_png
from tests.inference.conftest import Pair

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture
def page(captioner: Captioner) -> Iterator[Page]:
    engine = Engine(captioner, LIMITS)
    yield Page(engine)
    engine.close()


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    names = [tmp_path / f"a <b> {seed}.png" for seed in range(3)]
    for seed, name in enumerate(names):
        image(seed, 120).save(name)
    return [str(name) for name in names]


def drawn(*box: float) -> Any:
    return SimpleNamespace(box=box)


def caption_in(html: str) -> str:
    found = re.search(r"<blockquote>(.*?)</blockquote>", html)
    assert found, html
    return found[1]


def test_an_image_is_captioned_and_a_box_in_it(page: Page, images: list[str], captioner: Captioner) -> None:
    dropped, stage, shown = page.drop(images[0])
    assert dropped is not None
    opened = Image.open(images[0])
    assert caption_in(shown) == str(captioner.caption(opened))
    assert stage["picture"].startswith("data:image/jpeg;base64,")
    assert "120 × 120 px" in stage["says"]
    part = page.select(dropped, drawn(0.25, 0.5, 0.75, 1.0))
    assert caption_in(part) == str(captioner.caption(opened.crop((30, 60, 90, 120))))
    assert "60 × 60 px from column 30, row 60" in part
    assert caption_in(page.whole(dropped)) == caption_in(shown)
    words = caption_in(shown).split()
    assert shown.count("Where the model looked: ") == 1 + len(words)  # a map for all and for each
    assert "a &lt;b&gt; 0.png" in shown
    assert "<b> 0" not in shown


@pytest.mark.parametrize(
    ("sides", "box"),
    [
        ((0.25, 0.5, 0.75, 1.0), (25, 100, 75, 200)),
        ((0.5, 0.5, 0.5, 0.5), (34, 84, 66, 116)),  # a click
        ((0.0, 0.0, 0.0, 0.0), (0, 0, 32, 32)),
        ((1.0, 1.0, 1.0, 1.0), (68, 168, 100, 200)),
    ],
)
def test_boxes(page: Page, sides: tuple[float, ...], box: tuple[int, ...]) -> None:
    assert Dropped(Path("x.png"), (100, 200), page.engine).box_of(sides, 32) == box


def test_what_is_no_image_is_said(page: Page, tmp_path: Path, images: list[str]) -> None:
    for name, content, said in (
        ("notes.jpg", b"notes", "notes.jpg: image does not open"),
        ("giant.png", giant_png(30_000), "far more than 1,000,000 pixels"),
        ("large.png", bytes(200_001), "are taken here at most"),
        ("none.png", b"", "the file is empty"),
    ):
        (tmp_path / name).write_bytes(content)
        dropped, stage, shown = page.drop(str(tmp_path / name))
        assert dropped is None
        assert stage == {}
        assert said in shown
        assert str(tmp_path) not in shown
    kept, _, _ = page.drop(images[0])
    Path(images[0]).unlink()
    assert "drop it again" in page.select(kept, drawn(0, 0, 1, 1))
    assert "a &lt;b&gt; 0.png: is not kept any more; drop it again" in page.drop(images[0])[2]
    assert "Drop an image" in page.drop(None)[2]
    assert "Drop an image" in page.select(None, drawn(0, 0, 1, 1))


def write_scene(path: Path, pixels: np.ndarray, north_up: bool = True, **options: Any) -> np.ndarray:
    """A GeoTIFF in UTM, 0.5 m a pixel; returns its rows as a map shows them."""
    step = -0.5 if north_up else 0.5
    transform = Affine(0.5, 0, 500_000, 0, step, 5_000_000)
    height, width, bands = pixels.shape
    given = {"driver": "GTiff", "dtype": "uint8", "crs": "EPSG:32633", "transform": transform} | options
    with rasterio.open(path, "w", width=width, height=height, count=bands, **given) as file:
        if not options:
            file.write(np.moveaxis(pixels, 2, 0))
    return pixels if north_up else pixels[::-1]


@pytest.mark.parametrize("north_up", [True, False])
def test_a_box_on_a_scene(page: Page, tmp_path: Path, captioner: Captioner, north_up: bool) -> None:
    path = tmp_path / "scene.tif"
    pixels = write_scene(path, np.asarray(image(5, 1200)), north_up)
    page.engine.limits = replace(LIMITS, image_bytes=10_000_000, image_pixels=2_000_000)
    dropped, stage, shown = page.drop(str(path))
    assert "Draw a box on the scene" in shown
    assert "1200 × 1200 px, around" in stage["says"]
    part = page.select(dropped, drawn(0.25, 0.5, 0.5, 1.0))
    assert caption_in(part) == str(captioner.caption(Image.fromarray(pixels[600:1200, 300:600])))
    assert dropped is not None
    assert np.array_equal(dropped.window((300, 600, 600, 1200)), pixels[600:1200, 300:600])
    y = 5_000_000 - 450 if north_up else 5_000_000 + 150
    east, north = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True).transform(500_225, y)
    assert f"around {north:.5f}° N, {east:.5f}° E" in part


def test_a_box_off_the_earth_has_no_place_on_it(page: Page, tmp_path: Path) -> None:
    """As in a corner of a geostationary image."""
    geos = {"crs": "+proj=geos +h=35785831 +lon_0=0", "transform": Affine(60_000, 0, -6e6, 0, -60_000, 6e6)}
    write_scene(tmp_path / "x.tif", np.zeros((200, 200, 3)), **geos)
    dropped, stage, _ = page.drop(str(tmp_path / "x.tif"))
    assert dropped is not None
    assert "200 × 200 px, around 0.00000° N, 0.00000° E" in stage["says"]
    assert dropped.where((0, 0, 20, 20)) == "x.tif, 20 × 20 px from column 0, row 0"


def test_a_small_tiff_without_a_place_is_an_image(page: Page, tmp_path: Path, captioner: Captioner) -> None:
    image(1).save(tmp_path / "plain.tif")
    assert caption_in(page.drop(str(tmp_path / "plain.tif"))[2]) == str(captioner.caption(image(1)))


def test_a_scene_that_cannot_be_read_in_parts_is_refused(page: Page, tmp_path: Path) -> None:
    write_scene(tmp_path / "x.tif", np.zeros((8000, 8000, 1)), tiled=True, compress="deflate", sparse_ok=True)
    assert "8000 × 8000 pixels that cannot be read in parts" in page.drop(str(tmp_path / "x.tif"))[2]
    (tmp_path / "vrt.tif").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>")
    assert "does not open" in page.drop(str(tmp_path / "vrt.tif"))[2]


def test_many_images_with_a_bad_one(
    page: Page, images: list[str], tmp_path: Path, captioner: Captioner
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("notes")
    *_, (shown, table, lines, left) = page.many([images[0], str(bad), *images[1:]])
    assert left is None
    table, lines = table["value"], lines["value"]
    wanted = [str(record) for record in captioner.stream([Path(name) for name in images])]
    rows = list(csv.DictReader(Path(table).read_text("utf-8").splitlines()))
    records = [json.loads(line) for line in Path(lines).read_text("utf-8").splitlines()]
    assert [row["caption"] for row in rows] == [wanted[0], "", *wanted[1:]]
    assert [record["caption"] for record in records] == [wanted[0], None, *wanted[1:]]
    assert "bad.jpg: image does not open" in rows[1]["error"]
    assert all(text in shown for text in wanted)
    assert "Drop images first" in next(page.many(None))[0]


def test_of_many_that_are_not_kept_any_more_each_is_said_and_recorded(
    page: Page, pair: Pair, images: list[str]
) -> None:
    Path(images[1]).unlink()
    said = "a <b> 1.png: is not kept any more; drop it again"
    *_, (shown, _, lines, _) = page.many(images)
    records = [json.loads(line) for line in Path(lines["value"]).read_text("utf-8").splitlines()]
    assert [record["error"] for record in records] == [None, said, None]
    assert records[1]["sha256"] == ""
    assert escape(said) in shown
    comparing = Engine(pair.captioner, LIMITS)
    found, shown = Page(comparing).gather(images)
    comparing.close()
    assert found is not None
    assert len(found[0]) == 2
    assert escape(said) in shown


def test_what_is_more_than_can_be_taken_is_left_and_said(
    page: Page, pair: Pair, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bita.app.page.MANY", 2)
    early, (shown, table, _, left) = page.many(images)
    assert not early[1]["interactive"]  # there is nothing to be downloaded yet
    assert table["interactive"]
    assert len(Path(table["value"]).read_text("utf-8").splitlines()) == 3  # the header, and two
    assert left == images[2:]
    assert "2 are captioned; 1 are left" in shown
    comparing = Engine(pair.captioner, LIMITS)
    found, shown = Page(comparing).gather(images)
    comparing.close()
    assert found is not None
    assert len(found[0]) == 2
    assert "2 images can be searched; 1 more than can be taken were left out" in shown


def test_a_small_picture_is_large_enough_to_draw_on(page: Page, images: list[str]) -> None:
    _, stage, _ = page.drop(images[0])
    shown = Image.open(io.BytesIO(base64.b64decode(stage["picture"].partition(",")[2])))
    assert shown.size == (448, 448)  # of 120 × 120


def test_search_needs_a_model_that_compares(page: Page, images: list[str]) -> None:
    found, shown = page.gather(images)
    assert found is None
    assert shown.count("stage 1") == 1  # however many images
    assert "start the page with --checkpoint and a run that has one" in shown
    assert "Drop the images" in page.search("a lake", None)


def test_search_ranks_as_the_command_does(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("notes")
    engine = Engine(pair.captioner, LIMITS)
    page = Page(engine)
    found, shown = page.gather([str(path) for path in (*pair.images, tmp_path / "bad.png")])
    assert "5 images can be searched" in shown
    assert "bad.png: image does not open" in shown
    shown = page.search("two planes", found)
    engine.close()
    assert pair.captioner.stage1 is not None
    index = open_index(tmp_path / "index", pair.captioner.stage1)
    update(index, list(file_items(pair.images, pair.images[0].parent)), pair.captioner.stage1)
    hits = find(index, pair.captioner.stage1, "two planes", 12)
    assert re.findall(r'class="note">(.*?)</p>', shown) == [name for name, _ in hits]
    assert re.findall(r"<span>(-?\d\.\d\d)</span>", shown) == [f"{score:.2f}" for _, score in hits]
    assert "Say what you look for" in page.search("  ", found)


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    with listening("127.0.0.1", 0) as taken:
        assert main(["--checkpoint", str(run), "--port", str(taken.getsockname()[1]), "--device", "cpu"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "choose another --port" in line


def test_sigterm_leaves_no_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with listening("127.0.0.1", 0) as place:
        port = place.getsockname()[1]
    seen: list[int] = []

    def stop() -> None:
        while not seen:
            with contextlib.suppress(httpx.TransportError):
                seen.append(httpx.get(f"http://127.0.0.1:{port}/").status_code)
        seen.append(len(list(tmp_path.glob("bita-app-*"))))
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(SystemExit) as ended:
        main(["--checkpoint", str(run), "--port", str(port), "--device", "cpu"])
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert ended.value.code == 143
    assert seen == [200, 1]
    assert list(tmp_path.glob("bita-app-*")) == []


@pytest.fixture
def address(captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where page and service answer."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    engine = Engine(captioner, Limits(image_pixels=1_000_000))
    server = uvicorn.Server(uvicorn.Config(mount(Service(engine).app(), engine), log_level="error"))
    with listening("127.0.0.1", 0) as place:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.mark.long
@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium")
def test_in_a_browser(address: str, images: list[str], tmp_path: Path, captioner: Captioner) -> None:
    from playwright.sync_api import sync_playwright

    (tmp_path / "notes.jpg").write_text("notes")
    (tmp_path / "giant.png").write_bytes(giant_png(30_000))
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        for width in (1200, 390):
            view = browser.new_page(viewport={"width": width, "height": 900})
            hosts: set[str | None] = set()
            view.on("request", lambda request, hosts=hosts: hosts.add(urlsplit(request.url).hostname))
            view.goto(address)
            view.set_input_files("#file input[type=file]", images[0])
            said = view.locator("#result blockquote")
            said.wait_for()
            assert said.inner_text() == str(captioner.caption(images[0]))
            view.locator("#result .words label").nth(1).click()
            assert view.locator("#result .shown img:visible").count() == 1
            frame = view.locator("#stage .frame")
            frame.scroll_into_view_if_needed()
            box = frame.bounding_box()
            assert box is not None
            view.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
            view.mouse.down()
            view.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.99 * box["height"], steps=4)
            view.mouse.up()
            view.locator("#result :text('from column 30, row 60')").wait_for()
            box_drawn = view.locator("#stage .box")
            assert box_drawn.is_visible()
            view.get_by_role("button", name="Caption all of it").click()
            box_drawn.wait_for(state="hidden")
            assert view.get_by_role("tab").count() == 3  # none of them hides behind a menu
            assert view.evaluate("document.documentElement.scrollWidth") <= width
            for name, words in (("notes.jpg", "image does not open"), ("giant.png", "far more than")):
                view.locator("#file button[aria-label*=lear], #file button[aria-label*=emove]").first.click()
                view.locator("#file input[type=file]").wait_for(state="attached")
                view.set_input_files("#file input[type=file]", str(tmp_path / name))
                view.locator("#result .bad", has_text=words).wait_for()
            assert hosts <= {"127.0.0.1", None, ""}
        view.goto(f"{address}/docs")
        view.set_input_files("form input", images[1])
        view.get_by_role("button", name="Try it").click()
        answer = view.locator("pre", has_text='"log_probability"')
        answer.wait_for()
        status, record = answer.inner_text().split("\n", 1)
        assert (status, json.loads(record)["caption"]) == ("200", str(captioner.caption(images[1])))
        browser.close()
