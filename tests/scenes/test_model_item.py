"""An exported model's STAC Item says what the model takes; a scene is captioned by a real model through the command."""

from __future__ import annotations

import json
from pathlib import Path

import pystac
import pytest

from tests.scenes.makers import UTM, noise, raster
from tests.test_export import Trained, call, trained

__all__ = ["trained"]


def test_an_exported_model_says_what_it_takes(
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "model"
    assert call("scripts/export.py", str(trained.run), str(out), "--stac", monkeypatch=monkeypatch) == 0
    item = pystac.Item.from_file(str(out / "model.stac.json"))
    assert item.properties["mlm:tasks"] == ["image-captioning"]
    (given,) = item.properties["mlm:input"]
    assert given["input"]["shape"] == [-1, 3, 56, 56]
    assert [scaling["mean"] for scaling in given["value_scaling"]] == pytest.approx([127.5, 102, 76.5])
    assert item.properties["mlm:total_parameters"] > 1000
    for asset in item.assets.values():
        assert Path(asset.get_absolute_href()).is_file()


def test_the_command_captions_a_scene(
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scene = raster(tmp_path / "scene.tif", noise(3, 80, 120), **UTM)
    command = [
        "caption.py",
        "--checkpoint",
        str(trained.run),
        str(scene),
        "--crop",
        "40",
        "--batch-size",
        "2",
    ]
    assert call(*command, "--output", str(tmp_path / "a.geojson"), monkeypatch=monkeypatch) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(tmp_path / "a.geojson")]
    assert "scene.tif: 6 tiles, 0 of 6 without data" in said.err
    whole = json.loads((tmp_path / "a.geojson").read_text())
    assert all(feature["properties"]["caption"] for feature in whole["features"])
    assert all(feature["properties"]["log_probability"] < 0 for feature in whole["features"])
