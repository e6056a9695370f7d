"""What changed between two dates, and the STAC Items."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pystac
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from rasterio.warp import calculate_default_transform, reproject

from bita.errors import UserError
from bita.scenes.change import words_apart
from bita.scenes.stac import item_path
from tests.scenes.makers import UTM, Colours, noise, raster
from tests.scenes.test_command import caption


class Seeing(Colours):
    """Also embeds an image: the share of each colour, as one query."""

    stage1 = "one"

    def embed_images(self, images: list[Any]) -> torch.Tensor:
        means = torch.tensor(np.stack([np.asarray(image).mean((0, 1)) for image in images])).float()
        return torch.nn.functional.normalize(means, dim=-1)[:, None]


def grey_then_red(folder: Path) -> tuple[Path, Path]:
    """Two dates of 60 × 90 pixels; tile 4 of 30 × 30 is red at the second."""
    before = np.full((3, 60, 90), 100, np.uint8)
    after = before.copy()
    after[1:, 30:, 30:60] = 5
    return raster(folder / "before.tif", before, **UTM), raster(folder / "after.tif", after, **UTM)


@pytest.mark.parametrize("model", [Colours(), Seeing()])
def test_the_tile_that_changed_comes_first(tmp_path: Path, model: Colours) -> None:
    before, after = grey_then_red(tmp_path)
    options = ("--before", before, "--after", after, "--crop", 30, "--format", "gpkg", "--output")
    (out,) = caption(*options, tmp_path, model=model)
    assert out.name == "after.changes.gpkg"
    found = pyogrio.read_dataframe(out, layer="changes")
    assert len(found) == 6
    first = found[found["rank"] == 1].iloc[0]
    assert first["tile"] == 4
    assert first["caption_before"] == "red 100.0, green 100.0, blue 100.0"
    assert first["caption_after"] == "red 100.0, green 5.0, blue 5.0"
    assert first["change_caption"] == pytest.approx(1 - 2 * 4 / 12, abs=1e-6)
    cosine = (100 + 5 + 5) / np.sqrt(3 * (100**2 + 2 * 5**2))
    if isinstance(model, Seeing):
        assert first["change_image"] == pytest.approx(1 - cosine, abs=1e-5)
        assert first["change"] == pytest.approx(
            (first["change_image"] + first["change_caption"]) / 2, abs=1e-6
        )
    else:
        assert np.isnan(first["change_image"])
    assert (found[found["tile"] != 4]["change"].abs() < 1e-6).all()
    (top,) = caption(*options, tmp_path / "top.gpkg", "--top", 2, model=model)
    assert list(pyogrio.read_dataframe(top, layer="changes")["rank"]) == [1]  # the others did not change


def test_another_grid_is_brought_onto_that_of_the_second_date(tmp_path: Path) -> None:
    """The first date in degrees, and over a part alone: tiles outside it are passed over."""
    _, after = grey_then_red(tmp_path)
    with rasterio.open(after) as file:
        values, crs, transform, bounds = file.read(), file.crs, file.transform, file.bounds
    other, width, height = calculate_default_transform(crs, "EPSG:4326", 90, 60, *bounds)
    warped = np.zeros((3, height, width), np.uint8)
    reproject(values, warped, src_transform=transform, src_crs=crs, dst_transform=other, dst_crs="EPSG:4326")
    before = raster(
        tmp_path / "degrees.tif", warped[:, :, : width // 3 - 2], crs="EPSG:4326", transform=other, nodata=0
    )
    (out,) = caption(
        "--before",
        before,
        "--after",
        after,
        "--crop",
        30,
        "--min-valid",
        0.5,
        "--output",
        tmp_path,
        model=Seeing(),
    )
    found = json.loads(out.read_text())["features"]
    assert [feature["properties"]["tile"] for feature in found] == [0, 3]
    assert all(feature["properties"]["change_image"] < 0.01 for feature in found)


def test_a_journal_knows_both_dates_where_their_names_are_the_same(tmp_path: Path) -> None:
    """As of 2023/scene.tif and 2024/scene.tif."""
    dates = []
    for date, path in zip(("2023", "2024"), grey_then_red(tmp_path), strict=True):
        (tmp_path / date).mkdir()
        dates.append(path.rename(tmp_path / date / "scene.tif"))
    before, after = dates
    options = ("--before", before, "--after", after, "--crop", 30, "--batch-size", 1, "--output", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        caption(*options, model=Colours(after=4))
    raster(before, np.full((3, 60, 90), 50, np.uint8), **UTM)
    os.utime(before, (1, 1))
    with pytest.raises(UserError, match=r"scene\.changes\.geojson\.journal: is of scene "):
        caption(*options)


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    before = raster(tmp_path / "a.tif", noise())
    with pytest.raises(UserError, match=r"a\.tif: and .*b\.tif: both need a coordinate reference system"):
        caption(
            "--before", before, "--after", raster(tmp_path / "b.tif", noise(), **UTM), "--output", tmp_path
        )


def test_two_dates_of_different_places_are_asked_after(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    far = UTM | {"transform": from_origin(600_000, 5_820_000, 10, 10)}
    before, after = raster(tmp_path / "a.tif", noise(), **far), raster(tmp_path / "b.tif", noise(), **UTM)
    caption("--before", before, "--after", after, "--crop", 50, "--output", tmp_path)
    assert "b.tif: no tile has data at both dates (do they show the same place?), so that" in caplog.text


@pytest.mark.parametrize(
    ("one", "other", "apart"), [("a b", "A b", 0), ("a b", "c d", 1), ("a a b", "a b b", 1 / 3)]
)
def test_words_apart(one: str, other: str, apart: float) -> None:
    assert words_apart(one, other) == pytest.approx(apart)


def test_a_stac_item_stands_beside_the_file(tmp_path: Path) -> None:
    path = raster(
        tmp_path / "scene.tif", noise(), crs="EPSG:32601", transform=from_origin(166_000, 10_000, 10, 10)
    )
    with pytest.raises(UserError, match="STAC Item needs the time"):
        caption(path, "--crop", 50, "--stac", "--output", tmp_path)
    with rasterio.open(path, "r+") as file:
        file.update_tags(TIFFTAG_DATETIME="2024:06:21 10:30:00")
    (out,) = caption(path, "--crop", 50, "--stac", "--output", tmp_path)
    item = pystac.Item.from_file(str(item_path(out)))
    assert item.datetime.isoformat() == "2024-06-21T10:30:00+00:00"
    assert item.properties["proj:code"] == "EPSG:32601"
    assert item.properties["bita:model"] == Colours.hash
    assert Path(item.assets["captions"].get_absolute_href()) == out
    assert Path(item.assets["scene"].get_absolute_href()) == path
    west, south, east, north = item.bbox
    assert west == pytest.approx(-180, abs=0.01) or west > 179
    assert (north - south) == pytest.approx(0.009, abs=0.001)
    assert east != west
