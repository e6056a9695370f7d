"""What a model sees of a raster's tiles, and where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer
from rasterio.control import GroundControlPoint
from rasterio.shutil import copy
from shapely import Polygon, contains_xy, union_all

from bita.errors import UserError
from bita.processors.rgb import open_rgb
from bita.scenes.georeference import crs_of
from bita.scenes.polygons import globe_outline, globe_outlines, outlines
from bita.scenes.rasters import Scene, View
from bita.scenes.tiling import Tiling
from bita.scenes.windows import Edge, Grid, Tile
from tests.scenes.makers import UTM, noise, raster


def whole(scene: Scene) -> Tile:
    return Tile(0, 0, 0, *scene.size)


def seen(path: Path, side: int | None = None, **options: Any) -> View:
    """The whole raster as one tile."""
    with Scene(path, **options) as scene:
        return scene.view(whole(scene), scene.size, side or scene.size[0])


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("bands", [1, 3, 6])
def test_a_raster_that_fits_one_tile_is_seen_as_an_image_file_is(
    tmp_path: Path, kind: str, bands: int
) -> None:
    path = raster(tmp_path / "a.tif", noise(bands, 60, 60, kind), **UTM)
    assert (seen(path).pixels == np.asarray(open_rgb(path))).all()


def test_bands_are_chosen_and_others_refused(tmp_path: Path) -> None:
    values = noise(6, 60, 60)
    path = raster(tmp_path / "six.tif", values, **UTM)
    turned = raster(tmp_path / "turned.tif", values[[3, 2, 0]], **UTM)
    assert (seen(path, bands=(4, 3, 1)).pixels == seen(turned).pixels).all()
    with pytest.raises(UserError, match=r"six\.tif: bands \[7, 1, 1\] are not three numbers from 1 to 6"):
        seen(path, bands=(7, 1, 1))


def test_all_tiles_share_one_stretch(tmp_path: Path) -> None:
    """A dark tile stays dark beside a bright one, which a stretch of its own would not leave."""
    values = np.full((3, 64, 128), 1000, np.uint16) + noise(3, 64, 128)
    values[:, :, 64:] += 8000
    path = raster(tmp_path / "a.tif", values, **UTM)
    with Scene(path) as scene:
        dark, bright = (scene.view(tile, (64, 64), 64) for tile in Grid((128, 64), (64, 64), (64, 64)))
    assert dark.pixels.max() < 10
    assert bright.pixels.min() > 240


@pytest.mark.parametrize("overviews", [True, False])
def test_a_large_raster_is_stretched_by_a_sample_close_to_all(tmp_path: Path, overviews: bool) -> None:
    ramp = np.linspace(100, 9000, 2500 * 2400).reshape(1, 2400, 2500).astype(np.uint16)
    path = raster(tmp_path / "a.tif", ramp, tiled=True, **UTM)
    if overviews:
        with rasterio.open(path, "r+") as file:
            file.build_overviews([4], rasterio.enums.Resampling.nearest)
    with Scene(path) as scene:
        first, last = (scene.view(Tile(0, 0, y, 64, 64), (64, 64), 64).pixels.mean() for y in (0, 2336))
        middle = scene.view(Tile(0, 1200, 1200, 64, 64), (64, 64), 64).pixels.mean()
    assert first < 3
    assert last > 252
    assert middle == pytest.approx(131, abs=4)


def test_what_is_no_data_is_black_and_counted(tmp_path: Path) -> None:
    values = noise(3, 40, 40, "float32") + 500
    values[:, :10] = np.nan
    values[:, 10:15] = np.inf
    values[:, 15:20] = -9999
    view = seen(raster(tmp_path / "a.tif", values, nodata=-9999, **UTM))
    assert view.valid == 0.5
    assert not view.pixels[:20].any()
    assert view.pixels[20:].std() > 50
    untagged = seen(raster(tmp_path / "b.tif", values, **UTM))
    assert untagged.valid == 0.5
    assert (untagged.pixels == view.pixels).all()


@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha", "palette"])
def test_of_8_bits_too_what_is_no_data_is_black(tmp_path: Path, kind: str) -> None:
    """Without data is a pixel that has none in any band that is shown: one band alone may hold the nodata value."""
    values = noise(1 if kind == "palette" else 3, 40, 40, "uint8")
    wanted = values.copy()
    values[:, :10], wanted[:, :10] = 255, 0
    if kind == "nodata":
        values[0, 10], wanted[0, 10] = 255, 255
    profile: dict[str, Any] = UTM | ({"nodata": 255} if kind in ("nodata", "palette") else {})
    if kind == "alpha":
        alpha = np.full((1, 40, 40), 255, np.uint8)
        alpha[:, :10] = 0
        values, profile = np.concatenate([values, alpha]), profile | {"photometric": "rgb", "alpha": "yes"}
    path = raster(tmp_path / "a.tif", values, **profile)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        if kind == "palette":
            file.write_colormap(1, {value: (value, value, value) for value in range(256)})
        if kind == "mask":
            file.write_mask(np.arange(1600).reshape(40, 40) >= 400)
    view = seen(path)
    assert view.valid == 0.75
    assert (view.pixels == np.moveaxis(wanted, 0, 2)).all()


def test_a_palette_is_shown_in_its_colours(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", np.array([[[0, 1], [2, 2]]], np.uint8), **UTM)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (255, 0, 0), 1: (0, 255, 0), 2: (0, 0, 7)})
    assert seen(path).pixels.tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 7], [0, 0, 7]]]


def test_a_palette_on_another_grid_shows_no_other_colours(tmp_path: Path) -> None:
    """Between 1 and 3 lies 2, which is a colour of its own."""
    colours = {1: (255, 0, 0), 2: (0, 255, 0), 3: (0, 0, 255)}
    path = raster(tmp_path / "a.tif", np.kron([[[1, 3], [3, 1]]], np.ones((20, 20))).astype(np.uint8), **UTM)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, colours)
    half = UTM | {"transform": UTM["transform"] @ Affine.translation(0.5, 0.5) @ Affine.scale(0.7)}
    other = raster(tmp_path / "b.tif", noise(1, 50, 50), **half)
    with Scene(other) as scene, Scene(path, like=scene) as placed:
        view = placed.view(whole(placed), placed.size, 50)
    assert view.valid == 1
    assert {tuple(colour) for colour in view.pixels.reshape(-1, 3).tolist()} == {colours[1], colours[3]}


def test_a_cloud_optimised_raster_and_a_mosaic_show_the_same(tmp_path: Path) -> None:
    values = noise(3, 600, 600, "uint8")
    plain = raster(tmp_path / "a.tif", values, **UTM)
    copy(plain, tmp_path / "cog.tif", driver="COG", blocksize=128)
    copy(plain, tmp_path / "mosaic.vrt", driver="VRT")
    tile = Tile(0, 130, 260, 100, 100)
    for name in ("a.tif", "cog.tif", "mosaic.vrt"):
        with Scene(tmp_path / name) as scene:
            found = scene.view(tile, (100, 100), 100).pixels
        assert (found == np.moveaxis(values[:, 260:360, 130:230], 0, 2)).all(), name


def test_a_tile_beyond_the_edge_is_padded_with_black(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", noise(3, 40, 60, "uint8"), **UTM)
    with Scene(path) as scene:
        view = scene.view(Tile(0, 50, 30, 10, 10), (40, 40), 40)
    assert view.valid == 1
    assert view.pixels[:10, :10].all()
    assert view.pixels.sum() == view.pixels[:10, :10].sum()


@pytest.mark.parametrize("edge", ["shift", "pad"])
@pytest.mark.parametrize("step", [15, 20, 25])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "palette", "south", "mosaic"])
def test_tiles_read_together_are_as_each_alone(tmp_path: Path, kind: str, step: int, edge: Edge) -> None:
    values = noise(3, 60, 90, "uint8" if kind == "palette" else "float32" if kind == "float32" else "uint16")
    values[:, 5:50, 20:33] = 0
    if kind == "uint8":
        values = values.astype(np.uint8)
    profile: dict[str, Any] = UTM | {"nodata": 0}
    if kind == "palette":
        values, profile = values[:1], profile | {"photometric": "palette"}
    if kind == "south":
        profile["transform"] = Affine(10, 0, 0, 0, 10, 0)
    path = raster(tmp_path / "a.tif", values, **profile)
    if kind == "palette":
        with rasterio.open(path, "r+") as file:
            file.write_colormap(1, {value: (value, 255 - value, 7) for value in range(256)})
    if kind == "mosaic":
        copy(path, tmp_path / "a.vrt", driver="VRT")
        path = tmp_path / "a.vrt"
    with Scene(path) as scene:
        grid = Grid(scene.size, (20, 20), (step, step), edge)
        tiles = [grid[number] for number in range(len(grid))]
        together = list(scene.views(tiles, (20, 20), 20))
        alone = [scene.view(tile, (20, 20), 20) for tile in tiles]
    assert [view.tile for view in together] == tiles
    assert [view.valid for view in together] == [view.valid for view in alone]
    assert len({view.valid for view in together}) > 2
    for one, other in zip(together, alone, strict=True):
        assert (one.pixels == other.pixels).all()
        assert one.pixels.shape == (20, 20, 3)


# Where tiles lie.


def corners(polygon: Polygon) -> set[tuple[float, float]]:
    return {(round(x, 6), round(y, 6)) for x, y in polygon.exterior.coords}


def test_a_rotated_transform_turns_the_polygon(tmp_path: Path) -> None:
    turned = Affine.translation(390_000, 5_820_000) @ Affine.rotation(30) @ Affine.scale(10, -10)
    path = raster(tmp_path / "a.tif", noise(), crs="EPSG:32633", transform=turned)
    with Scene(path) as scene:
        found = outlines([Tile(0, 20, 30, 40, 50)], scene.where)[0]
        assert scene.where.pixel_size() == pytest.approx((10, 10), rel=0.001)
        assert not scene.where.mirrored
    wanted = {turned @ place for place in ((20, 30), (60, 30), (60, 80), (20, 80))}
    assert corners(found) == {(round(x, 6), round(y, 6)) for x, y in wanted}
    assert found.exterior.is_ccw


def test_a_raster_from_south_to_north_is_turned_upright_and_lies_right(tmp_path: Path) -> None:
    values = noise(3, 40, 40, "uint8")
    north = raster(tmp_path / "north.tif", values, crs="EPSG:32633", transform=Affine(10, 0, 0, 0, -10, 400))
    south = raster(
        tmp_path / "south.tif", values[:, ::-1], crs="EPSG:32633", transform=Affine(10, 0, 0, 0, 10, 0)
    )
    assert (seen(north).pixels == seen(south).pixels).all()
    with Scene(north) as one, Scene(south) as other:
        assert outlines([whole(one)], one.where)[0].equals(outlines([whole(other)], other.where)[0])


def test_control_points_alone_place_it(tmp_path: Path) -> None:
    where = Affine.translation(390_000, 5_820_000) @ Affine.rotation(10) @ Affine.scale(10, -10)
    points = [GroundControlPoint(y, x, *(where @ (x, y))) for x in (0, 75, 150) for y in (0, 50, 100)]
    path = raster(tmp_path / "a.tif", noise(), gcps=points, crs="EPSG:32633")
    with rasterio.open(path) as file:
        assert file.transform.is_identity
    with Scene(path) as scene:
        assert scene.where.crs.to_epsg() == 32633
        found = np.array(outlines([Tile(0, 20, 30, 40, 50)], scene.where)[0].exterior.coords)
    wanted = [where @ place for place in ((20, 30), (60, 30), (60, 80), (20, 80))]
    assert all(np.linalg.norm(found - place, axis=1).min() < 0.01 for place in wanted)


def test_without_a_place_pixels_are_the_map_and_crs_can_be_said_where_there_is_a_transform(
    tmp_path: Path,
) -> None:
    plain = raster(tmp_path / "plain.tif", noise())
    with Scene(plain) as scene:
        assert scene.where.crs is None
        assert scene.where.pixel_size() is None
        assert outlines([Tile(0, 0, 0, 10, 20)], scene.where)[0].bounds == (0, -20, 10, 0)
    with pytest.raises(UserError, match=r"plain\.tif: says nowhere where it lies"):
        Scene(plain, crs=crs_of("EPSG:32633"))
    only = raster(tmp_path / "only.tif", noise(), transform=UTM["transform"])
    with Scene(only) as scene:
        assert scene.where.crs is None
    with Scene(only, crs=crs_of("EPSG:32633")) as scene:
        assert scene.where.lonlat is not None
    with pytest.raises(UserError, match=r"--crs EPSG:1: .*name one as EPSG:32633"):
        crs_of("EPSG:1")


def lonlat(crs: str, places: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.stack(Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*places.T), axis=1)


def test_on_the_globe_a_small_tile_has_four_corners_and_a_large_one_more(tmp_path: Path) -> None:
    for pixel, fewest, most in ((10, 5, 5), (10_000, 17, 260)):
        transform = Affine(pixel, 0, 500_000, 0, -pixel, 6_000_000)
        path = raster(tmp_path / f"{pixel}.tif", noise(), crs="EPSG:32633", transform=transform)
        with Scene(path) as scene:
            found = globe_outline(whole(scene), scene.where)
            flat = np.array(
                scene.where.lonlat.transform(*np.array(found.exterior.coords).T, direction="INVERSE")
            )
        assert fewest <= len(found.exterior.coords) <= most
        assert found.exterior.is_ccw
        assert Polygon(flat.T).area == pytest.approx(150 * 100 * pixel**2, rel=1e-4)


def test_what_crosses_the_180th_meridian_is_cut_there(tmp_path: Path) -> None:
    path = raster(
        tmp_path / "a.tif", noise(), crs="EPSG:3832", transform=Affine(1000, 0, 3_300_000, 0, -1000, 100_000)
    )
    with Scene(path) as scene:
        found = globe_outline(whole(scene), scene.where)
    west, east = sorted(found.geoms, key=lambda part: part.bounds[0])
    assert (west.bounds[0], east.bounds[2]) == (-180, 180)
    assert west.bounds[2] < -179
    assert east.bounds[0] > 179
    assert all(part.exterior.is_ccw for part in found.geoms)
    degrees = 150_000 / 6_378_137 * 180 / np.pi
    assert sum(part.bounds[2] - part.bounds[0] for part in found.geoms) == pytest.approx(degrees, rel=1e-6)


def test_a_tile_with_a_pole_in_it_reaches_the_pole(tmp_path: Path) -> None:
    transform = Affine(10_000, 0, -750_000, 0, -10_000, 500_000)
    path = raster(tmp_path / "a.tif", noise(), crs="EPSG:3031", transform=transform)
    with Scene(path) as scene:
        found = globe_outline(whole(scene), scene.where)
    assert found.is_valid
    assert found.bounds[:3] == (-180, -90, 180)
    assert found.bounds[3] < -80


@pytest.mark.parametrize(
    ("crs", "across", "down"),
    [
        ("+proj=ortho +lat_0=30 +lon_0=10", 12_757_000, 12_757_000),
        ("ESRI:54009", 36_080_000, 18_040_000),
        ("+proj=geos +h=35785831 +lon_0=0", 10_870_000, 10_870_000),
    ],
)
def test_of_a_tile_that_reaches_off_the_earth_what_is_on_it_is_left(
    tmp_path: Path, crs: str, across: int, down: int
) -> None:
    """The edges of tiles in the corners are off it, others' in part: together they cover what is seen, once."""
    transform = Affine(across / 88, 0, -across / 88 * 50, 0, -down / 88, down / 88 * 50)
    path = raster(tmp_path / "a.tif", noise(1, 100, 100), crs=crs, transform=transform)
    with Scene(path) as scene:
        grid = Grid(scene.size, (5, 5), (5, 5))
        places = globe_outlines([grid[number] for number in range(len(grid))], scene.where)
        rim = scene.where.to_lonlat(scene.where.to_map(np.argwhere(np.ones((101, 101))).astype(float)))
        assert globe_outline(whole(scene), scene.where) is None  # all its edges are off the earth
    seen = rim[np.isfinite(rim).all(axis=1)]
    there = [place for place in places if place is not None]
    assert places[0] is None
    assert all(place.is_valid and not place.is_empty for place in there)
    together = union_all(there)
    assert sum(place.area for place in there) == pytest.approx(together.area, rel=0.01)
    assert contains_xy(together.buffer(0.01), *seen.T).mean() > 0.98
    assert together.bounds == pytest.approx((*seen.min(0), *seen.max(0)), abs=8)


@pytest.mark.parametrize("pixel", [10, 10_000])
def test_tiles_together_lie_where_each_alone_does(tmp_path: Path, pixel: int) -> None:
    """Straight ones, bent ones, and such as cross the 180th meridian."""
    transform = Affine(pixel, 0, 3_339_000 - 75 * pixel, 0, -pixel, 6_000_000)
    path = raster(tmp_path / "a.tif", noise(), crs="EPSG:3832", transform=transform)
    with Scene(path) as scene:
        grid = Grid(scene.size, (40, 40), (40, 40))
        tiles = [grid[number] for number in range(len(grid))]
        together = globe_outlines(tiles, scene.where)
        assert [place.wkb for place in together] == [globe_outline(tile, scene.where).wkb for tile in tiles]
        assert {place.geom_type for place in together} == {"Polygon", "MultiPolygon"}
        flat = outlines(tiles, scene.where)
        assert [place.wkb for place in flat] == [outlines([tile], scene.where)[0].wkb for tile in tiles]
        assert (globe_outlines([], scene.where), outlines([], scene.where)) == ([], [])


def test_metres_are_metres_in_degrees_and_web_mercator_too(tmp_path: Path) -> None:
    degrees = raster(
        tmp_path / "a.tif", noise(), crs="EPSG:4326", transform=Affine(1e-4, 0, 13, 0, -1e-4, 60.005)
    )
    mercator = raster(
        tmp_path / "b.tif", noise(), crs="EPSG:3857", transform=Affine(10, 0, 0, 0, -10, 8_399_738 + 500)
    )
    with Scene(degrees) as scene:
        across, down = scene.where.pixel_size()
        assert (across, down) == pytest.approx((5.58, 11.14), abs=0.01)
        tiling = Tiling.of(scene, 20, 20, 11.14, "shift")
    assert tiling.grid.window == (40, 20)
    assert tiling.gsd == pytest.approx(11.14, abs=0.02)
    with Scene(mercator) as scene:
        assert scene.where.pixel_size() == pytest.approx((5, 5), abs=0.05)


def test_a_distance_makes_larger_windows_that_are_averaged(tmp_path: Path) -> None:
    values = np.kron(noise(3, 20, 20, "uint8"), np.ones((4, 4), np.uint8))
    path = raster(tmp_path / "a.tif", values, **UTM)
    with Scene(path) as scene:
        tiling = Tiling.of(scene, 10, 10, 40, "shift")
        first = next(tiling.views(scene, 0, 0))
    assert tiling.grid.window == (40, 40)
    assert (first.pixels == np.moveaxis(values[:, :40:4, :40:4], 0, 2)).all()
    with Scene(raster(tmp_path / "b.tif", noise())) as scene:
        for_nothing = r"b\.tif: --gsd needs a scene whose pixels have a known size"
        with pytest.raises(UserError, match=for_nothing):
            Tiling.of(scene, 10, 10, 1, "shift")


# What is refused, in a line.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"not a raster", "cannot be read"),
        (b"II*\0\x08\0\0\0", "cannot be read"),
    ],
)
def test_what_is_no_raster_is_refused_by_name(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a # ü.tif"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"a # ü.tif: {said}"):
        Scene(path)


def test_a_truncated_raster_is_refused_where_it_ends(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", noise(3, 300, 300), tiled=True, blockxsize=64, blockysize=64, **UTM)
    path.write_bytes(path.read_bytes()[:100_000])
    with Scene(path) as scene, pytest.raises(UserError, match=r"a\.tif: cannot be read"):
        scene.view(Tile(0, 200, 200, 64, 64), (64, 64), 64)


def test_a_block_is_decoded_once_for_all_tiles_in_it(tmp_path: Path) -> None:
    """Once it was read, it is not looked for in the file again, which has lost it here."""
    size = {"blockxsize": 256, "blockysize": 256}
    path = raster(
        tmp_path / "a.tif",
        noise(3, 256, 256),
        tiled=True,
        interleave="band",
        compress="deflate",
        **size,
        **UTM,
    )
    with Scene(path) as scene:
        grid = Grid((256, 256), (64, 64), (64, 64))
        before = [scene.view(tile, (64, 64), 64).pixels for tile in grid]
        path.write_bytes(path.read_bytes()[:1000])
        after = [scene.view(tile, (64, 64), 64).pixels for tile in grid]
    assert all((old == new).all() for old, new in zip(before, after, strict=True))


def test_complex_numbers_and_rational_polynomials_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is of complex numbers"):
        Scene(raster(tmp_path / "a.tif", noise(1).astype("complex64")))
    path = raster(tmp_path / "b.tif", noise())
    ones = " ".join(["1"] * 20)
    names = ["LINE_OFF", "SAMP_OFF", "LAT_OFF", "LONG_OFF", "HEIGHT_OFF"]
    names += ["LINE_SCALE", "SAMP_SCALE", "LAT_SCALE", "LONG_SCALE", "HEIGHT_SCALE"]
    tags = dict.fromkeys(names, "1") | {
        f"{axis}_{part}_COEFF": ones for axis in ("LINE", "SAMP") for part in ("NUM", "DEN")
    }
    with rasterio.open(path, "r+") as file:
        file.update_tags(ns="RPC", **tags)
    with pytest.raises(UserError, match=r"b\.tif: has rational polynomial coefficients only"):
        Scene(path)


@pytest.mark.parametrize(
    ("tags", "time"),
    [
        ({"TIFFTAG_DATETIME": "2024:06:21 10:30:00"}, "2024-06-21T10:30:00Z"),
        ({"ACQUISITIONDATETIME": "2024-06-21T10:30:00Z"}, "2024-06-21T10:30:00Z"),
        ({"TIFFTAG_DATETIME": "yesterday"}, None),
        ({}, None),
    ],
)
def test_the_time_is_what_tags_say(tmp_path: Path, tags: dict[str, str], time: str | None) -> None:
    path = raster(tmp_path / "a.tif", noise(), **UTM)
    with rasterio.open(path, "r+") as file:
        file.update_tags(**tags)
    with Scene(path) as scene:
        assert scene.time == time
