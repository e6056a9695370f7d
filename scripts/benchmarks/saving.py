"""Measure what saving costs: a checkpoint of a stage at full size, beside a training step.

    python scripts/benchmarks/saving.py                                          # stage 2, full size
    python scripts/benchmarks/saving.py --cfg-path configs/projects/bita/train/pretrain_stage2_tiny.yaml

Builds the model of stage 2 or 3 with random weights, trains some steps on random images with the configured batch, and
writes checkpoints as a run does: bytes, seconds of a save, seconds of a step with and without the fault handling around
it (norm of the gradients, one number exchanged), and the share of the time that saves take every `--minutes`.
Without a GPU, `--steps 0` measures bytes and seconds of a save alone; the frozen language model, which is not saved,
can then be small: `--options model.opt_config.num_hidden_layers=1`.
"""

from __future__ import annotations

import copy
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import a_batch, wait
from torch import Tensor

from bita import registry
from bita.batch import Batch
from bita.build import build_model
from bita.checkpoint import Meta
from bita.commands import command_line, program
from bita.config.load import load_config
from bita.config.schema import Config
from bita.models.base import BitaModel
from bita.models.bita_lm import BitaLM
from bita.models.vision import image_input
from bita.runners.interrupt import Interrupt
from bita.runners.parallel import place
from bita.runners.state import save_state
from bita.runners.stepper import Stepper
from bita.runners.watch import StepWatch

STAGE_2 = Path("configs/projects/bita/train/pretrain_stage2.yaml")
SAVES = 5
TEXT_TOKENS = 16
"""Tokens of a caption; their ids are random, so that no tokenizer is needed."""


@dataclass(frozen=True)
class Result:
    """What was measured; seconds are medians."""

    trained: int
    size: int
    save: float
    guarded: float
    bare: float


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, print; returns the exit code."""
    parser = command_line(__doc__)
    parser.add_argument("--cfg-path", type=Path, default=STAGE_2, metavar="FILE")
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=20, help="steps measured each way; 0: none")
    parser.add_argument("--minutes", type=float, default=10, help="time between two saves")
    parser.add_argument("--out", type=Path, help="disk to write to; default: the temporary folder")
    args = parser.parse_args(arguments)
    cfg = load_config(args.cfg_path, ["model.vit_weights=null", *args.options], need_files=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        result = measure(cfg, device, args.steps, Path(folder))
    command = shlex.join(
        ["python", "scripts/benchmarks/saving.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    print(report(result, device, command, args.minutes))
    return 0


def measure(cfg: Config, device: torch.device, steps: int, folder: Path) -> Result:
    """Train `steps` steps each way, then write checkpoints into `folder`."""
    model = place(random_model(cfg), device, cfg.run)
    stepper = Stepper(model, registry.tasks.get(cfg.run.task)(cfg), cfg.run, device)
    batch = a_batch(cfg.run.batch_size_train, image_input(cfg.model).size, device)
    for parameter in stepper.trained:
        parameter.grad = torch.zeros_like(parameter)
    stepper.optimizer_step(0.0)  # AdamW's moments are there from here on
    for _ in range(min(steps, 3)):
        one_step(stepper, batch, guarded=True)
    times = {guarded: [one_step(stepper, batch, guarded) for _ in range(steps)] for guarded in (False, True)}
    saves, size = [], 0
    for number in range(SAVES):
        meta = Meta(epoch=number, step_in_epoch=1, steps_per_epoch=1, step=number + 1)
        start = time.perf_counter()
        path = save_state(folder, meta, model, stepper)
        saves.append(time.perf_counter() - start)
        assert path is not None
        size = sum(file.stat().st_size for file in path.iterdir())
    trained = sum(p.numel() for p in stepper.trained)
    middle = {way: statistics.median(seconds) if seconds else 0.0 for way, seconds in times.items()}
    return Result(trained, size, statistics.median(saves), middle[True], middle[False])


def random_model(cfg: Config) -> BitaModel:
    """The stage's model without weights from files; what the files would hold stays out of checkpoints, as always."""
    plain = copy.deepcopy(cfg.model)
    plain.text_model = None
    model = build_model(plain, load_weights=False)
    if cfg.model.freeze_vit:
        model.external["visual_encoder"] = model.sources["visual_encoder"] = "random"
    if isinstance(model, BitaLM) and model.cfg.freeze_lm:
        model.external["opt_model"] = model.sources["opt_model"] = "random"
    if isinstance(model, BitaLM):
        ids = torch.randint(4, 1000, (cfg.run.batch_size_train, TEXT_TOKENS))
        model.tokenize = lambda texts: (ids, ids)  # type: ignore[method-assign]
    return model


def one_step(stepper: Stepper, batch: Batch, guarded: bool) -> float:
    """Seconds of a step, with or without what watches over it."""
    watch, interrupt = StepWatch(), Interrupt(save_every_minutes=10)
    wait(stepper.device)
    start = time.perf_counter()
    output = stepper.accumulate(batch, share=1.0, last=True)
    if guarded:
        norm: Tensor = stepper.optimizer_step(1e-6)
        watch.add(0, [output], norm, batch["image_id"])
        interrupt.wish(now=False)
    else:
        stepper.optimizer.step()
        stepper.optimizer.zero_grad(set_to_none=True)
    wait(stepper.device)
    return time.perf_counter() - start


def report(result: Result, device: torch.device, command: str, minutes: float) -> str:
    """Return the table, with the machine and the command."""
    machine = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{torch.get_num_threads()} threads of a CPU"
    )
    lines = [
        f"`{command}`\n",
        f"{machine}, {platform.machine()}, torch {torch.__version__}\n",
        "| | |\n|---|---|",
        f"| trained weights | {result.trained / 1e6:.1f} M |",
        f"| a checkpoint | {result.size / 1e9:.2f} GB |",
        f"| a save | {result.save:.2f} s, {result.size / 1e9 / result.save:.2f} GB/s |",
        f"| a save every {minutes:g} minutes | {100 * result.save / (60 * minutes):.2f}% of the time |",
    ]
    if result.guarded:
        more = 100 * (result.guarded / result.bare - 1)
        times = f"{1000 * result.guarded:.1f} ms; without fault handling {1000 * result.bare:.1f} ms"
        lines.append(f"| a step | {times}: {more:+.1f}% |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
