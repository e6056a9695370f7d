"""The style in a GeoPackage, drawn by QGIS itself where it is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bita.cli.captioning import caption_line
from bita.scenes import command
from tests.scenes.makers import UTM, Colours, raster

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("confident", [True, False])
def test_qgis_colours_tiles_by_confidence(tmp_path: Path, confident: bool) -> None:
    values = np.zeros((3, 64, 128), np.uint8)
    values[0, :, :64], values[0, :, 64:] = 20, 240  # red is what `Colours` is confident by
    scene = raster(tmp_path / "scene.tif", values, **UTM)
    out = tmp_path / "a folder # ü.gpkg"
    line = ["--checkpoint", "none", str(scene), "--crop", "64", "--format", "gpkg", "--output", str(out)]
    args = caption_line().parse_args(line)
    command.run(args, command.check(args), Colours(confident=confident), "")  # type: ignore[arg-type]
    drawn = [sys.executable, "scripts/checks/draw_map.py", str(out), str(tmp_path / "map.png")]
    done = subprocess.run([*drawn, "--width", "400"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if done.stdout.startswith("skipped"):
        pytest.skip(done.stdout)
    pixels = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
    (red, green, _), right = pixels[20, 30], pixels[20, 370]
    if confident:
        assert red > green + 15
        assert right[1] > right[0] + 15
    else:
        assert np.ptp(pixels[20, 30]) < 3
        assert pixels[20, 30].max() < 240
    label, fill = pixels[60:-60, 20:190].sum(axis=2), pixels[20, 30].sum()
    assert label.min() < fill - 100  # the caption's text on it
