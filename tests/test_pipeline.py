"""The quickstart's stages, one after the other at the smallest sizes, and what can be done with what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.checkout import RUN, SCENES, Checkout, follow
from tests.shell import ROOT


def test_each_stage_takes_the_weights_of_the_one_before(checkout: Checkout) -> None:
    _, *said = checkout.quickstart.err.split("synthetic scenes:", 1)[1].split("weights from ")
    assert "vision 294/294" in said[0]  # stage 1 starts from ImageNet's
    first, second, third, *_ = (words for words in said if "/checkpoints/" in words)
    assert "/pretrain_stage1/" in first
    assert "opt_proj 0/2 (fresh: stage 1 has none)" in first
    assert "/pretrain_stage2/" in second
    assert "opt_proj 2/2" in second
    assert "/caption/" in third  # the report's
    assert "language model" in third


def test_evaluation_repeats_the_test_scores_of_training(checkout: Checkout) -> None:
    options = (
        f"env.cache_root=output/quickstart/data model.init_from={checkout.trained} run.output_dir=output/eval"
    )
    follow(checkout, f"MODEL=small_synthetic bash scripts/bita/eval/eval_caption.sh --options {options}")
    trained, evaluated = (
        json.loads((run / "scores.json").read_text())
        for run in (checkout.trained, checkout.folder / "output/eval/latest")
    )
    assert trained["test"] == evaluated["test"]
    assert {"Bleu_4", "METEOR", "ROUGE_L", "CIDEr"} <= trained["test"].keys()
    predictions = json.loads((checkout.folder / "output/eval/latest/results/test.json").read_text())
    assert len(predictions) == SCENES["test"]


def test_what_is_finished_is_not_trained_once_more(checkout: Checkout) -> None:
    command = json.loads((checkout.trained / "run.json").read_text())["command"]
    before = sorted(checkout.trained.parent.iterdir())
    said = follow(checkout, f"{command} --once")
    assert said.out == f"{checkout.trained}: finished already, with the same configuration\n"
    assert sorted(checkout.trained.parent.iterdir()) == before


def test_the_scores_and_the_report_at_the_end(checkout: Checkout) -> None:
    scores = json.loads((checkout.folder / "output/quickstart/scores.json").read_text())
    assert scores["seconds"] >= 0
    assert scores["test"].keys() == scores["test_shuffled_images"].keys()
    for name, value in scores["test"].items():
        low, high = scores["intervals"][name]
        assert low <= value <= high, name
    assert scores["facts"].keys() >= {"kind", "count"}
    page = (checkout.folder / "output/quickstart/report.html").read_text()
    assert page.count('<article class="card"') == SCENES["test"]
    assert page.count("<figcaption>attention</figcaption>") == 6


def test_captions_outside_training_in_a_process_of_its_own(checkout: Checkout) -> None:
    data = Path("output/quickstart/data/synthetic")
    entries = json.loads((checkout.folder / data / "annotations/test.json").read_text())
    paths = {entry["image_id"]: str(data / "images" / entry["image"]) for entry in entries}
    done = subprocess.run(
        [sys.executable, "caption.py", "--checkpoint", RUN, *paths.values()],
        cwd=checkout.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    predictions = json.loads((checkout.folder / RUN / "latest/results/test.json").read_text())
    assert done.stdout.splitlines() == [
        "\t".join([path, *(p["caption"] for p in predictions if p["image_id"] == image)])
        for image, path in paths.items()
    ]


def test_captioning_mistakes_are_one_line(checkout: Checkout) -> None:
    (checkout.folder / "broken.jpg").write_bytes(b"not an image")
    for arguments, words in (
        (f"--checkpoint {RUN} absent.jpg", "absent.jpg: no such file"),
        (f"--checkpoint {RUN} broken.jpg", "broken.jpg"),
        ("--checkpoint nowhere broken.jpg", "nowhere"),
        ("--checkpoint output/quickstart/pretrain_stage1 broken.jpg", "stage-1 checkpoint"),
    ):
        said = checkout(f"python caption.py {arguments}")
        assert said.code == 1
        assert said.out.strip() == ""
        assert said.err.splitlines()[-1].startswith("error: ")
        assert words in said.err.splitlines()[-1]
        assert "Traceback" not in said.err
