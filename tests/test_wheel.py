"""The wheel alone: installed, its commands do the whole work in an empty folder, without a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SOURCES = ("bita", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")
OPTIONS = [
    "model.image_size=64",
    "model.bridge_size.hidden_size=32",
    "model.bridge_size.intermediate_size=64",
    "model.vit_args.channels=[8,16,16,32]",
    f"model.opt_tokenizer={ROOT / 'tests/fixtures/parity/tokenizers/opt'}",
    "run.device=cpu",
]


def run(command: list[str], folder: Path) -> str:
    """What a command says; without a program's path, Python's. It finds no checkout: the search path is left out."""
    program = [] if command[0].startswith("/") else [sys.executable]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*program, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment that has the wheel, and this one's other packages.

    It lies in a repository of someone else's, whose commit is not that of the package.
    """
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    run(["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", ".", "./source"], folder)
    run(["-m", "venv", "--without-pip", "venv"], folder)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    (packages / "others.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
    wheel = next(folder.glob("bita-*.whl"))
    python = str(folder / "venv/bin/python")
    run(["-m", "pip", "--python", python, "install", "--no-deps", "--no-index", str(wheel)], folder)
    for command in ("init -q", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m theirs"):
        subprocess.run(["git", "-C", str(folder), *command.split()], check=True)
    return folder / "venv/bin"


def draw(folder: Path) -> None:
    """A folder of pictures, a caption beside each: {train,val,test}/N.png and N.txt."""
    dice = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 2), ("test", 4)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            pixels = dice.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{number}.png")
            (folder / split / f"{number}.txt").write_text(f"there are {number} planes near a river")


@pytest.mark.long
def test_five_commands_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    draw(tmp_path / "source")

    def command(name: str, *arguments: str) -> str:
        return run([str(installed / name), *arguments], tmp_path)

    where = run([str(installed / "python"), "-c", "import bita; print(bita.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    said = command("bita-prepare", "ucm_caption", "source", "data/ucm", "--form", "text")
    assert said.splitlines()[0].split() == ["train", "16", "images", "16", "captions"]
    training = ["configs/projects/bita/train/caption_ft_tiny_ucm.yaml", "--options", *OPTIONS]
    short = ["run.max_epoch=1", "run.batch_size_train=8", "run.warmup_steps=1", "run.output_dir=out"]
    command("bita-train", "--cfg-path", *training, "model.init_from=null", *short)
    described = json.loads((tmp_path / "out/latest/run.json").read_text())
    wheel = next(installed.parents[1].glob("bita-*.whl")).name
    assert (described["git_commit"], described["packages"]["bita"]) == (None, wheel.split("-")[1])
    trained = json.loads((tmp_path / "out/latest/scores.json").read_text())
    evaluation = ["configs/projects/bita/eval/caption_eval_tiny_ucm.yaml", "--options", *OPTIONS]
    command("bita-evaluate", "--cfg-path", *evaluation, "model.init_from=out", "run.output_dir=again")
    assert json.loads((tmp_path / "again/latest/scores.json").read_text()) == trained
    predictions = json.loads((tmp_path / "again/latest/results/test.json").read_text())

    records = json.loads((tmp_path / "data/ucm/annotations/test.json").read_text())
    images = {record["image_id"]: f"data/ucm/images/{record['image']}" for record in records}
    said = command("bita-caption", "--checkpoint", "out", *(images[p["image_id"]] for p in predictions))
    assert said.splitlines() == [prediction["caption"] for prediction in predictions]
    files = ["data/ucm/annotations/test_gt.json", "again/latest/results/test.json"]
    command("bita-metrics", *files, "--json", "scores.json")
    overall = json.loads((tmp_path / "scores.json").read_text())["overall"]
    assert overall["CIDEr"] == trained["test"]["CIDEr"]
