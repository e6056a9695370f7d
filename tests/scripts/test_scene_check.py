"""The check of a scene in large, in small: what it says of a right output, and that it sees a wrong one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from shapely.affinity import translate
from shapely.geometry import box, mapping

from scripts.checks.scene_check import misplaced
from tests.inference.conftest import Pair
from tests.scenes.makers import noise, raster

ROOT = Path(__file__).parents[2]


def test_a_polygon_that_lies_beside_its_tile_is_seen(tmp_path: Path) -> None:
    from rasterio.transform import from_origin

    degrees = from_origin(13, 52, 1e-4, 1e-4)
    path = raster(tmp_path / "scene.tif", noise(), crs="EPSG:4326", transform=degrees)
    row = {"column": 50, "row": 0, "width": 50, "height": 50}
    tile = box(13.005, 51.995, 13.01, 52)

    def feature(shape: Any) -> dict[str, Any]:
        return {"properties": row, "geometry": mapping(shape)}

    beside = [translate(tile, xoff=1e-4), translate(tile, yoff=-6e-5), box(13.005, 51.995, 13.015, 52)]
    assert misplaced([feature(tile), feature(translate(tile, xoff=2e-5))], path) == 0
    assert misplaced([feature(shape) for shape in (tile, *beside)], path) == 3


@pytest.mark.long
def test_the_check_of_a_small_scene(pair: Pair, tmp_path: Path) -> None:
    line = [sys.executable, "scripts/checks/scene_check.py", "--checkpoint", str(pair.run)]
    line += [
        "--out",
        str(tmp_path / "out"),
        "--side",
        "1024",
        "--crop",
        "128",
        "--kills",
        "1",
        "--rounds",
        "1",
    ]
    done = subprocess.run(
        [*line, "--json", str(tmp_path / "found.json")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["tiles"], found["polygons beside their tile"]) == (63, 0)
    assert found["equal to the uninterrupted output"]
    assert found["kills"] <= 1  # none, where all was done before it
    assert 0 <= found["objects named"] <= 1
    assert found["tiles/s"] > 0
