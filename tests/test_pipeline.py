"""All four stages through the real command lines, at the smallest sizes, one after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCENES = {"train": 48, "val": 6, "test": 8, "size": 64, "seed": 3}
SMALL = [
    "model.image_size=64",
    "model.bridge_size.hidden_size=32",
    "model.bridge_size.intermediate_size=64",
    "model.vit_args.channels=[8,16,16,32]",
    "run.batch_size_train=16",
    "run.warmup_steps=2",
    "run.max_epoch=1",
    "run.device=cpu",
    *(f"datasets.synthetic_caption.synthetic.{key}={value}" for key, value in SCENES.items()),
]


def run(command: list[str], **env: str) -> tuple[str, str]:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Where everything lies, and what each program printed."""
    out = tmp_path_factory.mktemp("pipeline")
    data, said = out / "data", {}
    scenes = [f"--{key}={value}" for key, value in SCENES.items()]
    run([sys.executable, "scripts/data/make_synthetic.py", str(data / "synthetic"), *scenes])
    annotations = str(data / "synthetic/annotations/train.json")
    run([sys.executable, "scripts/data/make_tokenizers.py", str(data / "tokenizers"), annotations])
    before = ""
    for stage, script in (
        ("pretrain_stage1", "train/pretrain_stage1.sh"),
        ("pretrain_stage2", "train/pretrain_stage2.sh"),
        ("caption", "train/train_caption.sh"),
        ("eval", "eval/eval_caption.sh"),
    ):
        options = [f"env.cache_root={data}", f"run.output_dir={out / stage}", *SMALL]
        options += [f"model.init_from={out / before}"] if before else []
        if stage == "eval":
            options = [o for o in options if "batch_size_train" not in o]
        said[stage] = run(["bash", f"scripts/bita/{script}", "--options", *options], MODEL="tiny", NPROC="1")[
            1
        ]
        before = stage
    return out, said


def test_each_stage_takes_the_weights_of_the_one_before(pipeline: tuple[Path, dict[str, str]]) -> None:
    _, said = pipeline
    assert "weights from" not in said["pretrain_stage1"]
    assert "opt_proj 0/2 (fresh: stage 1 has none)" in said["pretrain_stage2"]
    assert "opt_proj 2/2" in said["caption"]
    assert "language model" in said["eval"]


def test_evaluation_repeats_the_test_scores_of_training(pipeline: tuple[Path, dict[str, str]]) -> None:
    out, _ = pipeline
    trained, evaluated = (
        json.loads((out / s / "latest/scores.json").read_text()) for s in ("caption", "eval")
    )
    assert trained["test"] == evaluated["test"]
    assert {"Bleu_4", "METEOR", "ROUGE_L", "CIDEr"} <= trained["test"].keys()
    predictions = json.loads((out / "eval/latest/results/test.json").read_text())
    assert len(predictions) == SCENES["test"]


def test_report_and_captions_outside_training(pipeline: tuple[Path, dict[str, str]]) -> None:
    out, _ = pipeline
    run([sys.executable, "-m", "bita.reports.evaluation", str(out / "caption"), str(out), "--seconds", "12"])
    scores = json.loads((out / "scores.json").read_text())
    assert scores["seconds"] == 12
    assert scores["test"].keys() == scores["test_shuffled_images"].keys()
    assert scores["facts"].keys() >= {"kind", "count"}
    page = (out / "report.html").read_text()
    assert page.count('<article class="card"') == SCENES["test"]
    assert page.count("<figcaption>attention</figcaption>") == 6

    entries = json.loads((out / "data/synthetic/annotations/test.json").read_text())
    paths = {entry["image_id"]: str(out / "data/synthetic/images" / entry["image"]) for entry in entries}
    said = run([sys.executable, "caption.py", "--checkpoint", str(out / "caption"), *paths.values()])[0]
    predictions = json.loads((out / "caption/latest/results/test.json").read_text())
    assert said.splitlines() == [next(p["caption"] for p in predictions if p["image_id"] == i) for i in paths]


def test_captioning_mistakes_are_one_line(pipeline: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    out, _ = pipeline
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    for arguments, words in (
        (["--checkpoint", str(out / "caption"), str(tmp_path / "absent.jpg")], "absent.jpg: no such file"),
        (["--checkpoint", str(out / "caption"), str(broken)], "broken.jpg"),
        (["--checkpoint", str(tmp_path / "nowhere"), str(broken)], "nowhere"),
        (["--checkpoint", str(out / "pretrain_stage1"), str(broken)], "stage-1 checkpoint"),
    ):
        done = subprocess.run(
            [sys.executable, "caption.py", *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert done.stdout.strip() == ""
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert words in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
