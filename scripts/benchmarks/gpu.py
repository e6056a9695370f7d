"""A part of gpu_check.sh: steps and captions of the full-size models on a GPU, each way in turn on the same batch.

    python scripts/benchmarks/gpu.py stage_1 stage_1.json          # also stage_2, fine_tuning, captioning, profile
    python scripts/benchmarks/gpu.py stage_2 stage_2.json --tiny   # small, on any device

Sizes come from configs/, weights are random. Ours is measured pair by pair, with an image's five captions together, and
with the frozen encoder's tokens given; against it `run.speed: reference`, alone and with its loader of files, and
transformers' BLIP-2 of the same sizes in bf16 with the same optimizer. That ours and the reference have equal losses
(within 2% in 16 bit) is asserted first.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blip2
import numpy as np
import torch
from counts import RATE, Counts, captioning_floor, count, floors
from full_size import build, make_tokenizers, side
from inputs import batches_of
from kernels import kernel_groups
from measuring import BF16_PEAK, WORDS, a_batch, free, peak_of, reset_peak, wait
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from bita import registry
from bita.batch import Batch
from bita.commands import command_line, program
from bita.config.schema import BuildInfo, Config, DatasetConfig, EnvConfig, SplitConfig, StorageConfig
from bita.datasets.builders import Needs, build_dataset
from bita.datasets.loaders import TrainLoader
from bita.errors import UserError
from bita.models.base import BitaModel
from bita.models.bita_lm import BitaLM
from bita.models.language.generation import GenerationSettings
from bita.precision import autocast
from bita.runners.stepper import Stepper
from bita.tasks.base import to_device

CAPTIONS = 5
STAGES = {
    "stage_1": ("train/pretrain_stage1", 96, "stage 1, 96 pairs"),
    "stage_2": ("train/pretrain_stage2", 48, "stage 2, 48 pairs"),
    "fine_tuning": ("train/caption_ft", 48, "fine-tuning, 48 pairs"),
}
"""Part → project file, pairs of a step, name of its floors."""
REFERENCE, TRANSFORMERS = "IFT, reference", "transformers' BLIP-2"


@dataclass
class Way:
    """One way to do a step.

    Attributes:
        name: as in the table.
        pairs: of a step.
        run: does one; gives the loss, or None.
        floor: least seconds of a step.
        base: bytes that others hold.
    """

    name: str
    pairs: int
    run: Callable[[], Any]
    floor: float | None
    base: int
    peak: int = 0
    operations: float = 0.0
    times: list[float] = field(default_factory=list)
    losses: list[Any] = field(default_factory=list)


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, write; returns the exit code."""
    parser = command_line(__doc__)
    parser.add_argument("part", choices=(*STAGES, "captioning", "profile"))
    parser.add_argument("json", type=Path, help="file to write")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on any device")
    args = parser.parse_args(arguments)
    cuda = torch.cuda.is_available()
    if not cuda and not args.tiny:
        raise UserError("this machine has no CUDA device; --tiny goes through it on a CPU")
    args.device = torch.device("cuda" if cuda else "cpu")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_tokenizers(Path(scratch))
        if args.part == "profile":
            found: dict[str, Any] = {"profiles": profile(args, folder)}
        elif args.part == "captioning":
            found = {"rows": [row for size in sizes_of(args) for row in captioning(args, folder, size)]}
        else:
            found = {"rows": measured(args.part, training(args, folder), args)}
    args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def sizes_of(args: argparse.Namespace) -> tuple[int, ...]:
    """Batches of captioning."""
    return (2, 4) if args.tiny else (16, 64, 256)


def measured(what: str, ways: Iterable[Way], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Warm each way up as it is built, then run all in turn, round by round; lines of the table."""
    rounds, steps = (2, 2) if args.tiny else (3, 5 if what != "captioning" else 1)
    built = []
    for way in ways:
        reset_peak(args.device)
        try:
            with FlopCounterMode(display=False) as counter:
                way.losses.append(way.run())
            way.operations = float(counter.get_total_flops())
        except Exception as error:  # what is compiled may not bear to be counted; it is timed all the same
            print(f"{what}, {way.name}: operations not counted: {error}", file=sys.stderr)
        for _ in range(2):
            way.losses.append(way.run())
        way.peak = peak_of(args.device) - way.base
        built.append(way)
    for _ in range(rounds):
        for way in built:
            wait(args.device)
            start = time.perf_counter()
            way.losses += [way.run() for _ in range(steps)]
            wait(args.device)
            way.times.append((time.perf_counter() - start) / steps)
    return [line(what, way, built) for way in built]


def line(what: str, way: Way, ways: Sequence[Way]) -> dict[str, Any]:
    """Return what the table says of a way; ratios are of times a pair, the median over the rounds."""
    seconds = statistics.median(way.times)
    named = {other.name: other for other in ways}
    found: dict[str, Any] = {
        "what": what.replace("_", " "),
        "model": way.name,
        "pairs": way.pairs,
        "seconds": seconds,
        "least": min(way.times),
        "highest": max(way.times),
        "peak": way.peak,
        "operations": way.operations,
        "floor": None if way.floor is None else way.floor / seconds,
        "mfu": mfu(way.operations / seconds),
    }
    for key, name in (("reference", REFERENCE), ("transformers", TRANSFORMERS)):
        other = named.get(name)
        if other is not None and other is not way:
            rounds = [
                (b / other.pairs) / (a / way.pairs) for a, b in zip(way.times, other.times, strict=True)
            ]
            found[key] = statistics.median(rounds)
    losses = [float(loss) for loss in way.losses if isinstance(loss, torch.Tensor)]
    if losses:
        found["loss"] = [statistics.mean(losses[:3]), statistics.mean(losses[-3:])]
    return found


def mfu(rate: float) -> float | None:
    """Return operations a second as a share of what the device's maker gives for bf16, where that is known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((peak for part, peak in BF16_PEAK.items() if part in name), None)
    return None if peak is None else rate / peak


# Training


def training(args: argparse.Namespace, folder: Path) -> Iterator[Way]:
    """Every way to do a step of a stage."""
    project, pairs, name = STAGES[args.part]
    pairs, device, tiny = (10, args.device, True) if args.tiny else (pairs, args.device, False)
    groups = -(-pairs // CAPTIONS)
    least = (None, None, None, None) if tiny else floors(count())[name]
    floor = [None if one is None else one / RATE for one in least]
    share = groups * CAPTIONS / pairs
    base = held(device)
    cfg, ours = build(project, folder, device, tiny)
    own = stepper(cfg, ours, device)
    batch = a_batch(pairs, side(ours), device, cfg.model.prompt)
    together = a_batch(groups, side(ours), device, cfg.model.prompt, CAPTIONS)
    with torch.no_grad():
        tokens = ours.raw_tokens(together["image"]).half()
    kept: Batch = {"tokens": tokens, "text": together["text"], "image_id": together["image_id"]}
    many = groups * CAPTIONS
    yield Way("IFT", pairs, stepping(own, batch), floor[0] if floor[1] is None else floor[1], base)
    yield Way("IFT, captions together", many, stepping(own, together), scaled(floor[2], share), base)
    yield Way(
        "IFT, captions together, features cached", many, stepping(own, kept), scaled(floor[3], share), base
    )
    pictures(folder, 2 * pairs, side(ours))
    read = reading(cfg, folder, groups, CAPTIONS, True, device)
    yield Way("IFT, captions together, with its loader", many, stepping(own, read), None, base)
    base = held(device)
    slow, plain = build(project, folder, device, tiny, "run.speed=reference")
    plain.load_state_dict(ours.state_dict())
    for kind in (batch, together):
        agree(ours, plain, kind)
    before = stepper(slow, plain, device)
    yield Way(REFERENCE, pairs, stepping(before, batch), floor[0], base)
    files = reading(slow, folder, pairs, None, False, device)
    yield Way(f"{REFERENCE}, with its loader of files", pairs, stepping(before, files), None, base)
    base = held(device)
    other, qformer = build(project, folder, device, tiny, "model.bridge=qformer")
    yield Way("Q-Former", pairs, stepping(stepper(other, qformer, device), batch), None, base)
    if isinstance(qformer, BitaLM):
        base = held(device)
        theirs, token = blip2.blip2_like(qformer, device)
        step = blip2.training_step(theirs, token, qformer, batch, other.run)
        yield Way(TRANSFORMERS, pairs, step, None, base)


def scaled(floor: float | None, share: float) -> float | None:
    """Return the floor of a step with `share` times as many pairs."""
    return None if floor is None else floor * share


def held(device: torch.device) -> int:
    """Bytes that are allocated now."""
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0


def stepper(cfg: Config, model: BitaModel, device: torch.device) -> Stepper:
    """Return what trains a model, as a run does."""
    task = registry.tasks.get("image_text_pretrain")(cfg)
    return Stepper(model.train(), task, cfg.run, device)


def stepping(of: Stepper, source: Batch | Iterator[Batch]) -> Callable[[], torch.Tensor]:
    """Return what does a whole step, on one batch again and again or on a loader's next."""

    def step() -> torch.Tensor:
        batch = source if isinstance(source, dict) else to_device(next(source), of.device)
        loss = of.accumulate(batch, share=1.0, last=True)["loss"]
        of.optimizer_step(1e-4)
        return loss

    return step


@torch.no_grad()
def agree(ours: BitaModel, plain: BitaModel, batch: Batch) -> None:
    """Raise UserError where fast and reference give a batch other losses."""
    losses = []
    for model in (ours.eval(), plain.eval()):
        with autocast(model.device):
            losses.append(float(model(batch)["loss"]))
        model.train()
    if not abs(losses[0] - losses[1]) <= 0.02 * abs(losses[1]):
        raise UserError(f"fast and reference have other losses: {losses[0]:.4f} and {losses[1]:.4f}")


def pictures(folder: Path, count: int, size: int) -> None:
    """Write JPEGs of smooth noise, larger than what the model sees, with five captions each."""
    (folder / "images").mkdir()
    words, records = WORDS.split(), []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        side = size * 8 // 7
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(
            folder / f"images/{number}.jpg"
        )
        texts = [" ".join(words[k : k + 9 + number % 4]) for k in range(CAPTIONS)]
        records += [{"image": f"{number}.jpg", "caption": text, "image_id": number} for text in texts]
    (folder / "train.json").write_text(json.dumps(records))


def reading(
    cfg: Config, folder: Path, batch: int, captions: int | None, cached: bool, device: torch.device
) -> Iterator[Batch]:
    """Batches of the pictures without end, as a run reads them: from the cache, or from files in workers."""
    info = BuildInfo({"train": SplitConfig(storage="train.json")}, StorageConfig("images"))
    entry = DatasetConfig(build_info=info, captions_per_image=captions, cache_images=cached)
    data = build_dataset("pictures", entry, EnvConfig(str(folder)), "train", Needs.of(cfg.model), train=True)
    run = copy.copy(cfg.run)
    run.batch_size_train, run.num_workers = batch, run.num_workers if device.type == "cuda" else 0
    return batches_of(TrainLoader([data], run, device=device))


# Captioning


def captioning(args: argparse.Namespace, folder: Path, size: int) -> list[dict[str, Any]]:
    """Every way to caption a batch."""
    with torch.inference_mode(), autocast(args.device):
        rows = measured("captioning", writing(args, folder, size), args)
    free(args.device)
    return rows


def writing(args: argparse.Namespace, folder: Path, size: int) -> Iterator[Way]:
    """Fast and reference, the Q-Former, transformers; the first two say how many captions they have in common."""
    device, tiny, base = args.device, args.tiny, held(args.device)
    floor = None if tiny else captioning_floor(counted(), size)
    _, ours = build("train/caption_ft", folder, device, tiny)
    assert isinstance(ours, BitaLM)
    images = a_batch(size, side(ours), device)["image"]

    def write(model: BitaLM, speed: Any) -> Callable[[], Any]:
        model.eval().requires_grad_(False)
        return lambda: model.generate_ids(images, GenerationSettings(speed=speed))

    fast, plain = write(ours, "fast"), write(ours, "reference")
    equal = sum(a == b for a, b in zip(fast(), plain(), strict=True))
    print(f"captioning, batch {size}: fast and reference write the same for {equal} of {size} images")
    yield Way("IFT", size, fast, floor, base)
    yield Way(REFERENCE, size, plain, floor, base)
    base = held(device)
    _, qformer = build("train/caption_ft", folder, device, tiny, "model.bridge=qformer")
    assert isinstance(qformer, BitaLM)
    yield Way("Q-Former", size, write(qformer, "fast"), None, base)
    base = held(device)
    theirs, token = blip2.blip2_like(qformer, device)
    yield Way(TRANSFORMERS, size, blip2.writing(theirs, token, qformer, images), None, base)


def counted() -> Counts:
    """Return the arithmetic, counted outside of what stands around."""
    with torch.inference_mode(False), torch.autocast("cuda", enabled=False):
        return count()


# Profile


def profile(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time by group of kernels and launches, of a step of stages 1 and 2 and of a batch of captions."""
    found, device = {}, args.device
    for part in ("stage_1", "stage_2"):
        cfg, model = build(STAGES[part][0], folder, device, args.tiny)
        images = 2 if args.tiny else STAGES[part][1] // CAPTIONS
        batch = a_batch(images, side(model), device, captions=CAPTIONS)
        found[f"{part.replace('_', ' ')}, captions together"] = kernel_groups(
            stepping(stepper(cfg, model, device), batch), device
        )
        del model
        free(device)
    _, captioner = build("train/caption_ft", folder, device, args.tiny)
    assert isinstance(captioner, BitaLM)
    pixels = a_batch(2 if args.tiny else 16, side(captioner), device)["image"]
    captioner.eval()

    def write() -> None:
        with torch.inference_mode(), autocast(device):
            captioner.generate_ids(pixels, GenerationSettings())

    found["captioning, batch 16"] = kernel_groups(write, device)
    return found


if __name__ == "__main__":
    sys.exit(main())
