"""A split of eight images that two runs captioned, as training leaves it, without a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bita.config.load import config_to_yaml, load_config
from bita.reports.report import Findings, findings, write_report

ROOT = Path(__file__).parents[2]
REFERENCES = {
    1: ["a piece of farmland", "there is a piece of cropland", "a field with rows"],
    2: ["two planes at the airport", "there are two airplanes", "two planes are parked"],
    101: ["a river through a forest", "a curved river and trees", "the river is green"],
    102: ["many boats in the harbor", "lots of ships are docked", "a harbor with boats"],
    201: ["a tennis court by a road", "a tennis court", "one tennis court and some trees"],
    202: ["houses in lines", "many houses arranged in lines", "a dense residential area"],
    301: ["a baseball diamond", "it is a baseball field on the lawn", "a baseball field"],
    302: ["cars in the parking lot", "lots of cars are parked", "a full parking lot"],
}
FIRST = {
    1: "there is a piece of farmland",
    2: "three planes at the airport",
    101: "a river through a forest",
    102: "many boats docked in the harbor",
    201: "a tennis court by a road",
    202: "many houses & <script>alert(1)</script>",
    301: "a baseball field on the lawn",
    302: "a beach with waves",
}
SECOND = {**FIRST, 2: "there are two airplanes", 302: "a beach", 102: "a lake"}


def make_run(folder: Path, data: Path, captions: dict[int, str], *, before: Path | None = None) -> Path:
    """A run's folder, below its output folder; returns the output folder."""
    options = [f"env.cache_root={data}", f"run.output_dir={folder}", f"model.init_from={before or 'null'}"]
    cfg = load_config(
        ROOT / "configs/projects/bita/train/caption_ft_tiny_ucm.yaml", options, need_files=False
    )
    run = folder / "run"
    (run / "results").mkdir(parents=True)
    (folder / "latest").symlink_to("run")
    (run / "config.yaml").write_text(config_to_yaml(cfg))
    (run / "run.json").write_text(json.dumps({"command": "python train.py", "seed": 42}))
    results = [{"image_id": image_id, "caption": caption} for image_id, caption in captions.items()]
    (run / "results/test.json").write_text(json.dumps(results))
    lines = [{"event": "train", "step": step, "loss": 3 - step / 10, "lr": 1e-3} for step in (2, 4, 6)]
    lines += [{"event": "resumed", "step": 4}, {"event": "train", "step": 5, "loss": 2.0, "lr": 1e-4}]
    (run / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"event": "tra')
    return folder


def make_data(data: Path) -> Path:
    """A folder of datasets with one, of images numbered as UCM's are."""
    (data / "ucm/images").mkdir(parents=True)
    (data / "ucm/annotations").mkdir()
    for image_id in REFERENCES:
        pixels = np.random.default_rng(image_id).integers(0, 256, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(data / f"ucm/images/{image_id}.png")
    test = [
        {"image": f"{n}.png", "caption": text, "image_id": n}
        for n, texts in REFERENCES.items()
        for text in texts
    ]
    train = [{"image": "1.png", "caption": "A river through a forest .", "image_id": 1}]
    for name, content in (("test", test), ("train", train)):
        (data / f"ucm/annotations/{name}.json").write_text(json.dumps(content))
    images = [{"id": n, "file_name": f"{n}.png"} for n in REFERENCES]
    annotations = [{"id": k, "image_id": r["image_id"], "caption": r["caption"]} for k, r in enumerate(test)]
    (data / "ucm/annotations/test_gt.json").write_text(
        json.dumps({"images": images, "annotations": annotations})
    )
    return data


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Output folders of two runs; the second started from the first."""
    root = tmp_path_factory.mktemp("report")
    data = make_data(root / "data")
    first = make_run(root / "first", data, FIRST)
    return first, make_run(root / "second", data, SECOND, before=first)


@pytest.fixture(scope="session")
def found(runs: tuple[Path, Path]) -> Findings:
    return findings([runs[0]], baselines=True)


@pytest.fixture(scope="session")
def both(runs: tuple[Path, Path]) -> Findings:
    return findings(runs)


@pytest.fixture(scope="session")
def page(found: Findings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, found)
    return path
