"""The wheel alone: installed, its commands do the whole work in an empty folder, without a checkout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

import bita

ROOT = Path(__file__).parents[1]
TOKENIZERS = ROOT / "tests/fixtures/parity/tokenizers"
SOURCES = ("bita", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")
OPTIONS = [
    "model.image_size=64",
    "model.bridge_size.hidden_size=32",
    "model.bridge_size.intermediate_size=64",
    "model.vit_args.channels=[8,16,16,32]",
    f"model.opt_tokenizer={TOKENIZERS / 'opt'}",
    "run.device=cpu",
]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(command: list[str], folder: Path) -> str:
    """What a command says; without a program's path, Python's. It finds no checkout: the search path is left out."""
    program = [] if command[0].startswith("/") else [sys.executable]
    done = subprocess.run([*program, *command], cwd=folder, env=environment(), capture_output=True, text=True)
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
    for split, count in (("train", 16), ("val", 20), ("test", 4)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            pixels = dice.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{number}.png")
            (folder / split / f"{number}.txt").write_text(f"there are {number} planes near a river")


@pytest.mark.long
def test_the_first_lines_of_the_readme_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """bita-caption and Python, with the model that the wheel brings, and the page beside the service."""
    draw(tmp_path / "source")
    shutil.copy(tmp_path / "source/test/0.png", tmp_path / "my_aerial_photo.jpg")
    said = run([str(installed / "bita-caption"), "my_aerial_photo.jpg"], tmp_path)
    code = (ROOT / "README.md").read_text().split("python -c '")[1].split("'")[0]
    assert run([str(installed / "python"), "-c", code], tmp_path) == said
    said_of_it = "import bita; print(bita.__file__, bita.load().hash)"
    where, model = run([str(installed / "python"), "-c", said_of_it], tmp_path).split()
    assert Path(where).is_relative_to(installed.parent)

    words = [str(installed / "bita-app"), "--port", "0"]
    app = subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    assert app.stdout is not None
    address = app.stdout.readline().split()[0]
    assert httpx.get(f"{address}/v1/health", timeout=60).json()["model"] == model
    photo = (tmp_path / "my_aerial_photo.jpg").read_bytes()
    assert httpx.post(f"{address}/v1/caption", content=photo, timeout=60).json()["caption"] == said.strip()
    assert "gradio" in httpx.get(address, timeout=60).text
    app.send_signal(signal.SIGINT)
    assert app.wait(30) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my_aerial_photo.jpg", "source"]


@pytest.mark.long
def test_the_other_commands_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    draw(tmp_path / "source")

    def command(name: str, *arguments: str) -> str:
        return run([str(installed / name), *arguments], tmp_path)

    said = command("bita-prepare", "ucm_caption", "source", "data/ucm", "--form", "text")
    assert said.splitlines()[0].split() == ["train", "16", "images", "16", "captions"]
    short = [*OPTIONS, "run.max_epoch=1", "run.batch_size_train=8", "run.warmup_steps=1"]
    for stage, before, out in (("pretrain_stage1", "null", "stage1"), ("caption_ft", "stage1", "out")):
        config = f"configs/projects/bita/train/{stage}_tiny_ucm.yaml"
        own = [
            f"run.output_dir={out}",
            f"model.init_from={before}",
            f"model.text_tokenizer={TOKENIZERS / 'bert'}",
        ]
        command("bita-train", "--cfg-path", config, "--options", *short, *own)
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
    assert said.splitlines() == [f"{images[p['image_id']]}\t{p['caption']}" for p in predictions]
    assert command("bita-caption", "--version") == f"bita {bita.__version__}\n"
    assert command("bita-report", "again/latest").startswith("look at ")
    assert command("bita-export", "out", "model") == "model\n"
    assert (tmp_path / "model/meta.json").is_file()
    assert "calibration.json: fitted to 20 captions of val" in command("bita-calibrate", "out")
    found = command("bita-search", "planes near a river", "source/test", "--checkpoint", "out")
    ranks, similarities, names = zip(*(line.split("\t") for line in found.splitlines()), strict=True)
    assert (ranks, sorted(names)) == (("1", "2", "3", "4"), [f"{number}.png" for number in range(4)])
    assert sorted(map(float, similarities), reverse=True) == list(map(float, similarities))
    files = ["data/ucm/annotations/test_gt.json", "again/latest/results/test.json"]
    command("bita-metrics", *files, "--json", "scores.json")
    overall = json.loads((tmp_path / "scores.json").read_text())["overall"]
    assert overall["CIDEr"] == trained["test"]["CIDEr"]
