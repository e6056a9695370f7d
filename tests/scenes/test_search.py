"""`bita-search` on a folder and on a scene: as the model compares them, on the map where they are."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
from PIL import Image

from bita.cli import search
from bita.inference.aligner import Aligner
from bita.scenes.captioning import Wanted
from tests.datasets.makers import write_image
from tests.inference.conftest import Pair
from tests.scenes.makers import UTM, nested, noise, raster

TEXT = "two planes"


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    values = noise(height=100, width=150, kind="uint8")
    values[:, :50, 50:100] = 0  # the second tile has no data
    return raster(tmp_path / "scene #1.tif", values, nodata=0, **UTM)


def similarities(pair: Pair, images: list[Image.Image]) -> list[float]:
    return pair.captioner.score(images, [TEXT])[:, 0].tolist()


def test_a_folder_is_searched_and_shown(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        write_image(tmp_path / f"images/{number % 2}/ü {number}.png", number, (40, 36))
    (tmp_path / "images/0/broken.png").write_bytes(b"nothing")
    command = [TEXT, str(tmp_path / "images"), "--checkpoint", str(pair.run), "--device", "cpu"]
    assert search([*command, "--top", "3"]) == 0
    printed, said = capsys.readouterr()
    assert "warning: passed over" in said
    assert "broken.png" in said
    files = sorted((tmp_path / "images").rglob("ü*.png"))
    expected = sorted(zip(similarities(pair, files), files, strict=True), reverse=True)[:3]  # type: ignore[arg-type]
    rows = [line.split("\t") for line in printed.splitlines()]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [row[2] for row in rows] == [
        path.relative_to(tmp_path / "images").as_posix() for _, path in expected
    ]
    assert [float(row[1]) for row in rows] == pytest.approx([score for score, _ in expected], abs=2e-3)
    assert search([*command, "--output", str(tmp_path / "found.png")]) == 0
    with Image.open(tmp_path / "found.png") as image:
        assert image.size == (5 * 192 + 8, image.height)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_tiles_of_a_scene_are_found_on_the_map(
    pair: Pair,
    scene: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [TEXT, str(scene), "--checkpoint", str(pair.run), "--crop", "50", "--device", "cpu"]
    assert search([*command, "--output", str(tmp_path / "found.geojson")]) == 0
    features = json.loads((tmp_path / "found.geojson").read_text())["features"]
    with Image.open(scene) as image:
        pixels = np.asarray(image)
    tiles = [(x, y) for y in (0, 50) for x in (0, 50, 100) if (x, y) != (50, 0)]
    scores = similarities(pair, [Image.fromarray(pixels[y : y + 50, x : x + 50]) for x, y in tiles])
    expected = [tiles[k] for k in np.argsort(scores)[::-1]]
    found = [feature["properties"] for feature in features]
    assert [(row["column"], row["row"]) for row in found] == expected
    assert [row["rank"] for row in found] == [1, 2, 3, 4, 5]
    assert [row["similarity"] for row in found] == pytest.approx(sorted(scores, reverse=True), abs=2e-3)
    assert {(row["query"], row["scene"], round(row["gsd"], 1)) for row in found} == {
        (TEXT, "scene #1.tif", 10.0)
    }
    ground = geopandas.read_file(tmp_path / "found.geojson").to_crs(UTM["crs"])
    for polygon, (x, y) in zip(ground.geometry, expected, strict=True):
        place = (390_000 + 10 * x, 5_820_000 - 10 * (y + 50), 390_000 + 10 * (x + 50), 5_820_000 - 10 * y)
        assert polygon.bounds == pytest.approx(place, abs=0.01)
    monkeypatch.setattr(Aligner, "embed_pixels", lambda self, pixels: pytest.fail("embedded again"))
    capsys.readouterr()
    assert search([*command, "--top", "1"]) == 0
    x, y = expected[0]
    assert capsys.readouterr().out.endswith(f"\t{x},{y},50,50\n")


@pytest.mark.parametrize("name", ["mosaic.vrt", "nested.vrt"])
def test_a_mosaic_whose_part_changed_is_embedded_again(
    pair: Pair, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = nested(scene, tmp_path).with_name(name)
    command = [TEXT, str(path), "--checkpoint", str(pair.run), "--crop", "50", "--device", "cpu"]
    raster(scene, noise(height=100, width=150, kind="uint8")[:, ::-1], nodata=0, **UTM)
    assert search([*command, "--index", str(tmp_path / "of the new part alone")]) == 0
    wanted = capsys.readouterr().out
    raster(scene, noise(height=100, width=150, kind="uint8"), nodata=0, **UTM)
    assert search(command) == 0
    assert capsys.readouterr().out != wanted
    raster(scene, noise(height=100, width=150, kind="uint8")[:, ::-1], nodata=0, **UTM)
    assert search(command) == 0
    assert capsys.readouterr().out == wanted


def test_tiles_are_cut_as_the_options_say(pair: Pair, tmp_path: Path) -> None:
    values = noise(bands=6, height=100, width=150, kind="uint8")
    values[:, 60:100, 50:100] = 0  # the middle tile of the lower row has data on a fifth
    path = raster(tmp_path / "scene.tif", values, nodata=0, transform=UTM["transform"])
    options = ["--crop", "25", "--gsd", "20", "--bands", "3,2,1", "--min-valid", "0.5", "--crs", "EPSG:32633"]
    command = [TEXT, str(path), "--checkpoint", str(pair.run), "--device", "cpu", *options]
    assert search([*command, "--output", str(tmp_path / "found.gpkg")]) == 0
    found = geopandas.read_file(tmp_path / "found.gpkg", layer="found")
    cut = Wanted(crop=25, gsd=20, bands=(3, 2, 1), crs="EPSG:32633")
    with cut.open(path) as scene:
        views = list(cut.tiling(scene).views(scene, 0, 0.5))
    assert {view.pixels.shape for view in views} == {(25, 25, 3)}
    scores = similarities(pair, [Image.fromarray(view.pixels) for view in views])
    expected = [views[k].tile for k in np.argsort(scores)[::-1]]
    assert [(row.column, row.row) for row in found.itertuples()] == [(tile.x, tile.y) for tile in expected]
    assert sorted((tile.x, tile.y) for tile in expected) == [(0, 0), (0, 50), (50, 0), (100, 0), (100, 50)]
    assert found.similarity.tolist() == pytest.approx(sorted(scores, reverse=True), abs=2e-3)
    assert found.gsd.round(2).unique().tolist() == pytest.approx([20], abs=0.1)
    assert found.crs.to_epsg() == 32633
    (x, y) = (expected[0].x, expected[0].y)
    place = (390_000 + 10 * x, 5_820_000 - 10 * (y + 50), 390_000 + 10 * (x + 50), 5_820_000 - 10 * y)
    assert found.geometry[0].bounds == pytest.approx(place, abs=0.01)


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        (
            "empty",
            ["--gsd", "2"],
            "empty: its images are compared whole; --crop and the like are for a scene",
        ),
        ("no", [], "no: no such folder or file"),
        ("empty", [], "empty: no image in this folder or below"),
        (
            "empty",
            ["--output", "x.geojson"],
            "x.geojson: images of a folder have no place on a map; take FILE.png",
        ),
        ("empty", ["--output", "x.jpg"], "x.jpg: its name ends with none of .png, .geojson"),
        ("text.tif", [], "text.tif"),
    ],
)
def test_mistakes_are_one_line(
    target: str, options: list[str], says: str, pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tif").write_text("no raster")
    assert search([TEXT, str(tmp_path / target), "--checkpoint", str(pair.run), *options]) == 1
    said = capsys.readouterr().err
    assert says in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_with_the_packages_model_a_line_says_which_to_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "images/a.png", 1, (40, 36))
    assert search([TEXT, str(tmp_path / "images")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (
        "bita/box: its stage 1, which compares images and texts, is not there; name a run that has one"
        in said
    )
    assert "bash scripts/quickstart.sh makes output/quickstart/caption" in said
    assert not (tmp_path / "images/.bita-index").exists()


def test_an_index_of_another_model_is_refused(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "images/a.png", 1, (40, 36))
    command = [TEXT, str(tmp_path / "images"), "--checkpoint", str(pair.stage1)]
    assert search(command) == 0
    header = tmp_path / "images/.bita-index/index.json"
    header.write_text(header.read_text().replace('"model": "', '"model": "0'))
    assert search(command) == 1
    assert "it was made by another model; name another --index" in capsys.readouterr().err
