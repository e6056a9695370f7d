"""Files of captioned tiles: what they hold, that they are the same after a kill, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import resource
import sqlite3
from argparse import Namespace
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
from affine import Affine
from shapely import from_wkt
from shapely.geometry import shape

from bita.cli.captioning import caption_line
from bita.errors import UserError
from bita.scenes import command
from bita.scenes.captioning import Wanted, caption_scene, journal_of
from bita.scenes.layers import SUFFIXES
from bita.scenes.stac import item_path
from tests.scenes.makers import UTM, Colours, nested, noise, raster


def parsed(*arguments: str | Path) -> Namespace:
    return caption_line().parse_args(["--checkpoint", "none", *map(str, arguments)])


def caption(*arguments: str | Path, model: Any = None) -> list[Path]:
    args = parsed(*arguments)
    assert command.is_wanted(args)
    jobs = command.check(args)
    command.run(args, jobs, model or Colours(), "")
    return [job.path for job in jobs]


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """100 × 150 pixels of 10 m; the upper left tile of 50 × 50 has no data."""
    values = noise(3, 100, 150)
    values[:, :50, :50] = 0
    folder = tmp_path / "a folder # ü"
    folder.mkdir()
    path = raster(folder / "scene # ü.tif", values, nodata=0, **UTM)
    with rasterio.open(path, "r+") as file:
        file.update_tags(TIFFTAG_DATETIME="2024:06:21 10:30:00")
    return path


def read(path: Path) -> geopandas.GeoDataFrame:
    """A file as other programs read it."""
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    return pyogrio.read_dataframe(path, **({"layer": "captions"} if path.suffix == ".gpkg" else {}))


@pytest.mark.parametrize("kind", ["geojson", "gpkg", "geoparquet"])
def test_other_programs_read_every_tile_where_it_lies(scene: Path, tmp_path: Path, kind: str) -> None:
    (out,) = caption(scene, "--crop", 50, "--format", kind, "--output", tmp_path)
    assert out == tmp_path / f"scene # ü.captions{SUFFIXES[kind]}"
    found = read(out)
    assert found.crs.to_epsg() == (4326 if kind == "geojson" else 32633)
    assert found["tile"].tolist() == [1, 2, 3, 4, 5]
    placed = found.to_crs(32633)
    for row in placed.itertuples():
        left, top = 390_000 + 10 * row.column, 5_820_000 - 10 * row.row
        wanted = (left, top - 500, left + 500, top)
        assert row.geometry.bounds == pytest.approx(wanted, abs=0.01)
        assert row.geometry.area == pytest.approx(250_000, rel=1e-5)
    first = found.iloc[0]
    assert first["scene"] == "scene # ü.tif"
    assert first["caption"].startswith("red ")
    assert first["time"].isoformat() == "2024-06-21T10:30:00+00:00"
    assert first["model"] == Colours.hash
    assert first["gsd"] == pytest.approx(10, abs=0.01)
    assert 0 < first["confidence"] < 1
    candidates = first["candidates"]
    assert list(json.loads(candidates) if isinstance(candidates, str) else candidates)[1] == "“grün”, too"


def test_geojson_is_as_rfc_7946_wants_it(scene: Path, tmp_path: Path) -> None:
    (out,) = caption(scene, "--crop", 50, "--output", tmp_path / "out.json")
    content = json.loads(out.read_bytes().decode("utf-8"))
    assert content["type"] == "FeatureCollection"
    assert "crs" not in content
    for feature in content["features"]:
        place = shape(feature["geometry"])
        assert place.exterior.is_ccw
        assert place.bounds[0] == pytest.approx(13.38, abs=0.02)
        assert place.bounds[1] == pytest.approx(52.51, abs=0.02)
        assert feature["properties"]["candidates"][1] == "“grün”, too"


def test_a_table_has_the_polygon_as_text(scene: Path, tmp_path: Path) -> None:
    (out,) = caption(scene, "--crop", 50, "--format", "csv", "--output", tmp_path)
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert rows[0]["crs"] == "EPSG:32633"
    assert from_wkt(rows[0]["geometry"]).bounds == (390_500, 5_819_500, 391_000, 5_820_000)


def test_a_geopackage_brings_its_style(scene: Path, tmp_path: Path) -> None:
    (out,) = caption(scene, "--crop", 50, "--format", "gpkg", "--output", tmp_path)
    with sqlite3.connect(out) as base:
        style, table, default = base.execute(
            "SELECT styleQML, f_table_name, useAsDefault FROM layer_styles"
        ).fetchone()
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    base.close()
    assert (table, default) == ("captions", 1)
    assert style.count("<rule ") == 6
    assert '"confidence" IS NULL' in style.replace("&quot;", '"')
    assert "fieldName='\"caption\"'" in style


@pytest.mark.parametrize("kind", list(SUFFIXES))
def test_killed_and_resumed_it_is_the_same_to_the_byte(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whether tiles are read beside the model or between its batches."""
    options = (scene, "--crop", 20, "--stride", 10, "--batch-size", 3, "--format", kind, "--output")
    (whole,) = caption(*options, tmp_path / "whole")
    seen = []
    for cores, kill in enumerate((0, 1, 7, 20, None)):
        monkeypatch.setattr("bita.inference.views.cores", lambda cores=cores: 64 * (cores % 2))
        model = Colours(after=kill)
        if kill is None:
            caption(*options, tmp_path / "killed", model=model)
        else:
            with pytest.raises(KeyboardInterrupt):
                caption(*options, tmp_path / "killed", model=model)
            assert not (tmp_path / "killed").exists()
            with journal_of(tmp_path / "killed").open("ab") as file:
                file.write(b'[{"tile": 3, "cap')  # as a kill inside a write leaves it
        seen.append(len(model.seen))
    assert (tmp_path / "killed").read_bytes() == whole.read_bytes()
    assert sum(seen) == seen[-1] + 28
    assert sum(count // 3 * 3 for count in seen[:-1]) + seen[-1] == 14 * 9 - 16
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["killed", "whole"]


def test_a_journal_of_something_else_is_not_gone_on_with(scene: Path, tmp_path: Path) -> None:
    options = (scene, "--format", "gpkg", "--batch-size", 4, "--output", tmp_path / "out.gpkg")
    with pytest.raises(KeyboardInterrupt):
        caption(*options, "--crop", 50, model=Colours(after=4))
    with pytest.raises(
        UserError, match=r"out\.gpkg\.journal: is of crop 50; give those again to go on, or say --overwrite"
    ):
        caption(*options, "--crop", 25)
    other = Colours()
    other.hash = "f" * 16
    with pytest.raises(UserError, match="is of model 0123456789abcdef"):
        caption(*options, "--crop", 50, model=other)
    caption(*options, "--crop", 50, "--overwrite", model=other)
    assert read(tmp_path / "out.gpkg")["model"].unique().tolist() == [other.hash]


def test_overwriting_goes_on_after_a_kill_and_keeps_the_old_file_until_the_new_one_is_whole(
    scene: Path, tmp_path: Path
) -> None:
    options = (scene, "--crop", 50, "--batch-size", 1, "--output", tmp_path / "out.geojson", "--overwrite")
    (out,) = caption(*options, "--stride", 25)
    old = out.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        caption(*options, model=Colours(after=3))
    assert out.read_bytes() == old
    rest = Colours()
    caption(*options, model=rest)
    assert len(rest.seen) == 2
    assert read(out)["tile"].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["mosaic.vrt", "nested.vrt"])
def test_a_journal_of_a_mosaic_knows_its_parts(scene: Path, tmp_path: Path, name: str) -> None:
    path = nested(scene, tmp_path).with_name(name)
    options = (path, "--crop", 50, "--batch-size", 1, "--output", tmp_path / "out.geojson")
    with pytest.raises(KeyboardInterrupt):
        caption(*options, model=Colours(after=2))
    os.utime(scene, (1, 1))
    said = r"is of scene \['scene # ü\.tif', \d+, '20.*'\]; give those again to go on, or say --overwrite"
    with pytest.raises(UserError, match=said):
        caption(*options)
    model = Colours()
    caption(*options, "--overwrite", model=model)
    assert len(model.seen) == 5


def test_several_scenes_go_to_a_folder(scene: Path, tmp_path: Path) -> None:
    other = raster(tmp_path / "other.tif", noise(), **UTM)
    found = caption(scene, other, "--crop", 50, "--output", tmp_path)
    assert [path.name for path in found] == ["scene # ü.captions.geojson", "other.captions.geojson"]
    with pytest.raises(UserError, match="exists already; say --overwrite, or name another --output"):
        caption(scene, "--crop", 50, "--output", tmp_path)
    with pytest.raises(UserError, match="two scenes of that name"):
        caption(other, other, "--crop", 50, "--format", "csv", "--output", tmp_path)


def test_a_terminal_shows_what_is_left_and_a_mistake_has_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal, times = StringIO(), iter((100.0, 110.0, 120.0, 120.1, 130.0))
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("time.monotonic", lambda: next(times))

    def captioned(shown: command.Shown) -> None:
        for done in (116, 132, 148, 148):  # 100 were done by a run before
            shown(done, 5300)
        raise UserError("a.tif: cannot be read")

    with pytest.raises(UserError), command.Shown("a.tif") as shown:
        captioned(shown)
    assert terminal.getvalue() == (
        "\ra.tif: 132/5300 tiles, 0:53:50 left  \ra.tif: 148/5300 tiles, 0:53:40 left  \n"
    )


def test_a_scene_without_data_is_an_empty_file_and_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = raster(tmp_path / "a.tif", np.zeros((3, 60, 60), np.uint16), nodata=0, **UTM)
    for kind in SUFFIXES:
        (out,) = caption(path, "--crop", 30, "--format", kind, "--output", tmp_path)
        assert out.is_file()
        if kind != "csv":
            assert len(read(out)) == 0
    assert "a.tif: 0 tiles, 4 of 4 without data" in capsys.readouterr().err
    assert "a.tif: no tile has data" in caplog.text


def test_a_scene_without_reference_system_cannot_be_geojson_but_all_else(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", noise(), transform=UTM["transform"])
    with pytest.raises(UserError, match=r"a\.tif: has no coordinate reference system .* name it with --crs"):
        caption(path, "--crop", 50, "--output", tmp_path)
    assert list(tmp_path.glob("*journal*")) == []
    for kind in ("gpkg", "geoparquet"):
        (out,) = caption(path, "--crop", 50, "--format", kind, "--output", tmp_path)
        found = read(out)
        assert found.crs is None
        assert found.total_bounds.tolist() == [390_000, 5_819_000, 391_500, 5_820_000]
    (out,) = caption(path, "--crop", 50, "--crs", "EPSG:32633", "--output", tmp_path)
    assert read(out).to_crs(32633).total_bounds == pytest.approx(
        [390_000, 5_819_000, 391_500, 5_820_000], abs=0.01
    )


@pytest.mark.parametrize("kind", list(SUFFIXES))
def test_a_tile_off_the_earth_is_written_without_a_place_on_it(tmp_path: Path, kind: str) -> None:
    """As at the rim of a geostationary image; on the map of its own system it has one."""
    geos = {"crs": "+proj=geos +h=35785831 +lon_0=0", "transform": Affine(60_000, 0, -6e6, 0, -60_000, 6e6)}
    path = raster(tmp_path / "a.tif", noise(3, 200, 200), **geos)
    with rasterio.open(path, "r+") as file:
        file.update_tags(TIFFTAG_DATETIME="2024:06:21 10:30:00")
    (out,) = caption(path, "--crop", 20, "--format", kind, "--stac", "--output", tmp_path)
    item = json.loads(item_path(out).read_text())
    assert item["geometry"] is None  # as STAC has it of an item without a place: no box either
    assert "bbox" not in item
    if kind == "csv":
        assert out.read_text().count("POLYGON ((") == 100
        return
    found = read(out)
    assert found["tile"].tolist() == list(range(100))
    if kind == "geojson":
        assert json.loads(out.read_text())["features"][0]["geometry"] is None
        assert found.geometry[44:46].is_valid.all()
        assert 60 < found.geometry.notna().sum() < 100
    else:
        assert found.geometry.area.tolist() == [1.2e6**2] * 100


def test_few_valid_pixels_can_be_too_few(scene: Path, tmp_path: Path) -> None:
    (out,) = caption(scene, "--crop", 60, "--edge", "pad", "--min-valid", 0.5, "--output", tmp_path)
    assert read(out)["tile"].tolist() == [1, 2, 3, 4, 5]
    assert read(out)["valid"].min() > 0.5


@pytest.mark.parametrize("kind", list(SUFFIXES))
def test_a_disk_that_fills_is_a_line_and_the_work_goes_on_later(
    scene: Path, tmp_path: Path, kind: str, little_space: Callable[[int], None]
) -> None:
    out, wanted = tmp_path / "out", Wanted(crop=20, stride=10, batch_size=4)

    def fills(when: str) -> None:
        def told(done: int, total: int) -> None:
            if when == "writing the file" and done == total:
                little_space(1_000)

        try:
            little_space(3_000 if when == "writing the journal" else resource.RLIM_INFINITY)
            with pytest.raises(OSError, match=r".") as raised:
                caption_scene(Colours(), scene, out, kind, wanted, told)
        finally:
            little_space(resource.RLIM_INFINITY)
        assert str(raised.value.filename).startswith(str(out))
        assert raised.value.strerror
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.journal"]

    fills("writing the journal")
    fills("writing the file")
    model = Colours()
    caption_scene(model, scene, out, kind, wanted, lambda done, total: None)
    assert len(model.seen) == 0
    caption_scene(model, scene, tmp_path / "whole", kind, wanted, lambda done, total: None)
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--crop", "9"], "name a raster, or two by --before and --after"),
        (["--before", "a.tif"], "--before and --after: give both"),
        (["missing.tif", "--crop", "9"], r"scene missing\.tif: no such file"),
        ([".", "--crop", "9", "--top", "3"], "--top: is of tiles that changed; give --before and --after"),
        (["none/*.tif", "--crop", "9"], "no file matches this pattern"),
        (["a.tif", "--output", "a.gpkg", "--format", "csv"], "is named like gpkg, but --format is csv"),
        (["a.tif", "--crop", "9", "--output", "a.shp"], r"a\.shp: its name must end in \.geojson, \.gpkg, "),
    ],
)
def test_options_that_do_not_fit_are_answered(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        command.check(parsed(*arguments))


@pytest.mark.parametrize(
    "options",
    [
        *(["--format", kind] for kind in SUFFIXES),
        *(["--output", f"a{ending}"] for ending in (".geojson", ".gpkg", ".parquet", ".GPKG")),
        *(["--stride", "9"], ["--gsd", "0.5"], ["--edge", "pad"], ["--bands", "4,3,2"], ["--stac"]),
        *(["--crs", "EPSG:4326"], ["--min-valid", "0.5"], ["--top", "3"]),
    ],
)
def test_whatever_is_of_scenes_asks_for_one(options: list[str]) -> None:
    """An option that had no effect would be a mistake that nobody is told of."""
    assert command.is_wanted(parsed("a.tif", *options))


@pytest.mark.parametrize("options", [[], ["--output", "a.csv"], ["--output", "a.jsonl"], ["--nucleus"]])
def test_whatever_is_of_images_does_not(options: list[str]) -> None:
    assert not command.is_wanted(parsed("a.tif", *options))


@pytest.mark.parametrize("kind", list(SUFFIXES))
def test_the_name_of_the_output_says_the_format(scene: Path, tmp_path: Path, kind: str) -> None:
    (named,) = caption(scene, "--crop", 50, "--output", tmp_path / f"out{SUFFIXES[kind]}")
    (asked,) = caption(scene, "--crop", 50, "--output", tmp_path / "out", "--format", kind)
    assert named.read_bytes() == asked.read_bytes()


def test_folders_and_patterns_name_scenes_and_their_outputs_get_a_folder(scene: Path, tmp_path: Path) -> None:
    raster(scene.parent / "b.tif", noise(), **UTM)
    wanted = [tmp_path / "new" / f"{name}.captions.csv" for name in ("b", "scene # ü")]
    options = ("--crop", 50, "--format", "csv", "--output", tmp_path / "new")
    assert caption(scene.parent, *options) == wanted
    assert caption(scene.parent / "*.tif", *options, "--overwrite") == wanted


def test_a_folder_that_is_named_like_a_format_gets_files_of_it(scene: Path, tmp_path: Path) -> None:
    """Also where the command makes it."""
    other = raster(tmp_path / "other.tif", noise(), **UTM)
    found = caption(scene, other, "--crop", 50, "--output", tmp_path / "maps.gpkg")
    assert [path.name for path in found] == ["scene # ü.captions.gpkg", "other.captions.gpkg"]
    assert all(path.read_bytes().startswith(b"SQLite format 3") for path in found)
