"""The small recipe: its stages on a few pictures, each from the one before, with the weights of a package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bita.cli import main
from bita.prepare.__main__ import main as prepare
from bita.prepare.tokenizers import make_bert, make_opt, read_captions

STAGES = ("pretrain_stage1", "pretrain_stage2", "caption_ft", "scst")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `env.cache_root` names: 16 pictures for training, 2 for val, 2 for test, and tokenizers."""
    folder = tmp_path_factory.mktemp("small")
    dice = np.random.default_rng(0)
    for number in range(20):
        picture = folder / f"source/{number}.png"
        picture.parent.mkdir(exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(picture)
        picture.with_suffix(".txt").write_text(f"there are {number} planes\n{number} planes near a river\n")
    drawing = ["--form", "auto", "--draw", "val=0.1", "test=0.1"]
    assert prepare(["ucm_caption", str(folder / "source"), str(folder / "ucm"), *drawing]) == 0
    captions = read_captions([folder / "ucm/annotations/train.json"])
    make_bert(captions, folder / "tokenizers/bert", 200)
    make_opt(captions, folder / "tokenizers/opt", 300)
    return folder


def test_two_steps_of_every_stage(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [f"env.cache_root={data}", "run.max_epoch=1", "run.batch_size_train=8", "run.device=cpu"]
    common += ["model.image_size=64", "run.warmup_steps=1", "run.log_freq=1"]
    before = ""
    for stage in STAGES:
        options = [*common, f"run.output_dir={tmp_path / stage}"]
        options += [f"model.init_from={tmp_path / before}"] if before else []
        options += ["run.cache_features=1"] if stage != STAGES[0] else []
        config = f"configs/projects/bita/train/{stage}_small_ucm.yaml"
        assert main(None, evaluate=False, arguments=["--cfg-path", config, "--options", *options]) == 0
        said = capsys.readouterr().err
        assert ("[EfficientNet-Lite0]: vision 294/294" in said) or before
        assert "vision 294/294" in said  # of the stage before, where the encoder was tuned
        events = [
            json.loads(line) for line in (tmp_path / stage / "latest/log.jsonl").read_text().splitlines()
        ]
        assert [event["step"] for event in events if event["event"] == "train"] == [1, 2]
        before = stage
    assert len(list((data / "ucm").rglob("features_train_*.npy"))) == 1  # stage 2's serve the stages after it
    assert json.loads((tmp_path / "scst/latest/scores.json").read_text())["test"]["CIDEr"] >= 0
