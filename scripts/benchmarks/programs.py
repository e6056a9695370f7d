"""Rows of benchmark.py about whole programs: fine-tuning, captioning of files, a busy machine, the quickstart."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
from turns import Row, compare, row, same_lists, same_values

import bita
from bita.cli import run as run_config
from bita.config.load import load_config
from bita.datasets.synthetic import generate
from bita.errors import UserError
from bita.inference.captioner import Captioner
from bita.prepare.tokenizers import make_bert, make_opt, read_captions

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = "configs/projects/bita/train"
SCENES = "datasets.synthetic_caption"


def scenes(folder: Path, **counts: int) -> Path:
    """Draw synthetic scenes below a folder and make tokenizers of their captions; the folder."""
    generate(folder / "synthetic", **counts)
    captions = read_captions([folder / "synthetic/annotations/train.json"])
    make_bert(captions, folder / "tokenizers/bert", 600)
    make_opt(captions, folder / "tokenizers/opt", 600)
    return folder


def tiny(project: str, folder: Path, out: Path, *options: str) -> tuple[str, list[str]]:
    """Return the file of a tiny project, and its options for scenes in a folder and a run in another."""
    fixed = (
        f"env.cache_root={folder}",
        f"run.output_dir={out}",
        f"{SCENES}.synthetic={{}}",
        "run.device=cpu",
    )
    return f"{PROJECTS}/{project}_tiny.yaml", [*fixed, *options]


# Cached features


def features(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """Eight epochs of fine-tuning with a frozen ViT-S, its tokens cached and not, of three seeds; and their scores."""
    side, images, epochs, seeds = (32, 8, 2, 1) if args.small else (224, 64, 8, 3)
    data = scenes(scratch, train=images, val=1, test=4 if args.small else 60, size=64 if args.small else 128)
    weights = scratch / "encoder.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("vit_small_patch16_224", img_size=side).state_dict(), weights)
    times: dict[str, list[float]] = {"1": [], "null": []}
    quality: dict[str, list[float]] = {"1": [], "null": []}
    for seed in range(-1, seeds):  # the first is for nothing: imports and the like
        for views in times:
            out = scratch / f"run_{views}_{seed}"
            keys = (
                "model.init_from=null",
                "model.vit_model=timm:vit_small_patch16_224",
                "model.vit_args={}",
                f"model.vit_weights={weights}",
                "model.freeze_vit=true",
                f"model.image_size={side}",
                "run.valid_splits=[]",
                "run.validate_every=100",
                f"run.max_epoch={epochs if seed >= 0 else 1}",
                "run.batch_size_train=8",
                f"run.seed={seed + 1}",
                f"run.cache_features={views}",
                f"{SCENES}.captions_per_image=5",
                f"{SCENES}.vis_processor.train.color_jitter=0",
            )
            start = time.perf_counter()
            scores = run_config(load_config(*tiny("caption_ft", data, out, *keys)))["test"]
            if seed >= 0:
                times[views].append(time.perf_counter() - start - tested(out))
                quality[views].append(scores["CIDEr"])
    said = within_noise(quality["1"], quality["null"])
    what, per = f"features, ViT-S at {side} px, {epochs} epochs of {images} images", epochs * images
    ours, theirs = ([each / per for each in times[views]] for views in ("1", "null"))
    return [row(what, ours, theirs, against="not cached", unit="image and epoch", same=said, wanted=4)]


def tested(out: Path) -> float:
    """Seconds that a run spent after its last checkpoint: on its test split, which both sides encode alike."""
    events = [json.loads(line) for line in (out / "latest/log.jsonl").read_text().splitlines()]
    last = {event["event"]: event["time"] for event in events}
    return float(last["scores"] - last["checkpoint"])


def within_noise(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Say how two sides' scores lie over the seeds.

    Raises:
        UserError: their means lie farther apart than twice the standard error of the difference.
    """
    means = [statistics.mean(values) for values in (ours, theirs)]
    if len(ours) > 1:
        error = (sum(statistics.variance(values) / len(values) for values in (ours, theirs))) ** 0.5
        if means[1] - means[0] > 2 * error:
            raise UserError(
                f"features: CIDEr {means[0]:.3f} cached, {means[1]:.3f} not: more than noise ({error:.3f})"
            )
    return f"CIDEr {means[0]:.2f} and {means[1]:.2f} over {len(ours)} seeds"


# Files


def files(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """Captioning of image files by a trained run, against its model on the same tensors, which lie in memory."""
    count, batch = (6, 4) if args.small else (1000, 16)
    if args.run is None:
        raise UserError(
            "--run: name the folder of a trained captioning run, such as output/quickstart/caption"
        )
    generate(scratch / "scenes", train=count, val=1, test=1, size=256 if not args.small else 64)
    paths = sorted((scratch / "scenes/images").glob("train_*.jpg"))
    captioner: Captioner = bita.load(args.run)
    tensors = torch.stack([captioner.processors.evaluated(path) for path in paths])

    def alone() -> list[str]:
        parts = tensors.split(batch)
        return [one[0] for part in parts for one in captioner.model.generate(part, captioner.settings)]

    def program() -> list[str]:
        return [str(caption) for caption in captioner.stream(paths, batch_size=batch, score=False)]

    same = same_lists("captions", program(), alone())
    return compare(
        f"files, {count} of them",
        [program, alone],
        against="the model alone",
        unit="image",
        units=count,
        rounds=min(args.rounds, 3),
        same=same,
        wanted=0.9,
    )


# A busy machine


def busy(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """The tiny recipe's stage 1 by `train.py`, quiet and beside two programs in sessions of their own."""
    images, limit = (160, 60) if args.small else (1600, 90)
    data = scenes(scratch, train=images, val=1, test=1, size=112)
    quiet, loaded, said = [], [], ""
    for number in range(1 if args.small else min(args.rounds, 2)):
        speed, losses = training_speed(data, scratch / f"quiet_{number}", limit)
        with two_busy_programs():
            slower, others = training_speed(data, scratch / f"busy_{number}", limit)
        quiet.append(1 / speed)
        loaded.append(1 / slower)
        common = min(len(losses), len(others))
        said = same_values("losses", torch.tensor(others[:common]), torch.tensor(losses[:common]), 0.05)
    what = "busy, stage 1 of the tiny recipe beside two busy programs"
    return [row(what, loaded, quiet, against="quiet", unit="image", same=said, wanted=0.4)]


def training_speed(data: Path, out: Path, limit: float) -> tuple[float, list[float]]:
    """Images a second of an epoch of stage 1, after its first steps, and its losses; ended after `limit` seconds."""
    config, options = tiny(
        "pretrain_stage1", data, out, "run.max_epoch=1", "run.log_freq=2", "run.test_splits=[]"
    )
    command = [sys.executable, "train.py", "--cfg-path", config, "--options", *options]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    out.mkdir()
    log = out / "log.txt"
    with (
        log.open("w") as said,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said) as run,
    ):
        try:
            run.wait(limit)
        except subprocess.TimeoutExpired:
            run.kill()
    lines = [json.loads(line) for path in out.glob("*/log.jsonl") for line in path.read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "train"]
    speeds = [line["images_per_second"] for line in steps[1:]]
    if not speeds:
        raise UserError(f"train.py: no speed within {limit:g} s: {log.read_text()[-200:]}")
    return statistics.harmonic_mean(speeds), [line["loss"] for line in steps]


@contextmanager
def two_busy_programs() -> Iterator[None]:
    """Two programs that compute without end, each in a session of its own, which gets half of a core's time."""
    loop = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(loop, start_new_session=True) for _ in range(2)]
    try:
        yield
    finally:
        for one in programs:
            one.kill()
            one.wait()


# Quickstart


BEFORE, SECONDS_BEFORE, CIDER_BEFORE = "698fb92", 335.0, 4.171
"""The whole quickstart as benchmarks/quickstart.md records it at that commit, on 2 cores of an AMD EPYC, AVX512."""


def quickstart(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """The whole quickstart, below `--run` if that is given, against the state before; small: only what it says."""
    out = args.run or scratch / "quickstart"
    if not args.small:
        subprocess.run(["bash", "scripts/quickstart.sh", str(out)], cwd=ROOT, check=True, stdout=sys.stderr)
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    return [
        row(
            "quickstart",
            [scores["seconds"]],
            [SECONDS_BEFORE],
            against=f"at {BEFORE}",
            unit="run",
            same=f"CIDEr {scores['test']['CIDEr']:.3f}, before {CIDER_BEFORE}",
        )
    ]
