"""What the benchmarks of whole models share: steps and captions timed, memory and operations counted, a table."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bita.batch import Batch
from bita.config.schema import RunConfig
from bita.precision import autocast
from bita.runners.optim import build_optimizer

BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12}
"""Part of a device's name → its dense bf16 operations a second, as its maker gives them (SXM where it varies)."""
LEARNING_RATE = 1e-4
WORDS = "many planes are parked near the long runway of a large airport beside some green trees and grey buildings"


@dataclass
class Row:
    """A line of the table."""

    what: str
    model: str
    batch: int
    seconds: float
    operations: float
    peak_bytes: int
    loss: tuple[float, float] | None = None

    def cells(self, peak_rate: float | None) -> str:
        """Return the line itself."""
        rate = self.operations / self.seconds
        return (
            "| "
            + " | ".join(
                (
                    self.what,
                    self.model,
                    str(self.batch),
                    f"{self.seconds:.3f}",
                    f"{self.batch / self.seconds:.1f}",
                    f"{self.peak_bytes / 2**30:.1f}",
                    f"{self.operations / 1e12:.2f}",
                    "" if peak_rate is None else f"{rate / peak_rate:.1%}",
                    "" if self.loss is None else f"{self.loss[0]:.3f} → {self.loss[1]:.3f}",
                )
            )
            + " |"
        )


HEADER = (
    "| what | model | batch | s a step | images/s | peak GiB | TFLOP a step | MFU | loss |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def timed_steps(
    what: str,
    name: str,
    model: nn.Module,
    loss_of_batch: Callable[[], Tensor],
    batch: int,
    steps: int,
    device: torch.device,
) -> Row:
    """Three steps that are not timed, in the first of which operations are counted, then `steps` that are."""
    optimizer = build_optimizer(model, RunConfig(init_lr=LEARNING_RATE))
    losses: list[Tensor] = []

    def step() -> None:
        with autocast(device):
            loss = loss_of_batch()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach().float())

    with FlopCounterMode(display=False) as counter:
        step()
    for _ in range(2):
        step()
    reset_peak(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    seconds = (time.perf_counter() - start) / steps
    found = torch.stack(losses).cpu()
    loss = (found[:3].mean().item(), found[-3:].mean().item())
    return Row(what, name, batch, seconds, counter.get_total_flops(), peak_of(device), loss)


def timed_captions(name: str, write: Callable[[], Any], batch: int, device: torch.device) -> Row:
    """Return one run of a model without gradients that counts operations, then three that are timed."""
    with torch.inference_mode(), autocast(device):
        with FlopCounterMode(display=False) as counter:
            write()
        reset_peak(device)
        start = time.perf_counter()
        for _ in range(3):
            write()
        wait(device)
    seconds = (time.perf_counter() - start) / 3
    return Row("captioning, 5 beams", name, batch, seconds, counter.get_total_flops(), peak_of(device))


def a_batch(size: int, image_size: int, device: torch.device, prompt: str = "") -> Batch:
    """Noise for images, and captions that differ."""
    words = WORDS.split()
    texts = [" ".join(words[i % 7 : i % 7 + 8 + i % 4]) for i in range(size)]
    images = torch.randn(size, 3, image_size, image_size, device=device)
    return {"image": images, "text": [f"{prompt} {t}".strip() for t in texts], "image_id": list(range(size))}


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: torch.device) -> None:
    """Count memory from here."""
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_of(device: torch.device) -> int:
    """Most bytes allocated since `reset_peak`; on a CPU, of the process since it began."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_of_process()


def free(device: torch.device) -> None:
    """Give cached memory back."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_of_process() -> int:
    """Most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_section(path: Path, title: str, text: str) -> None:
    """Put a section into a Markdown file, in place of the one of the same title."""
    content = path.read_text() if path.is_file() else "# Full size\n"
    head, mark, rest = content.partition(f"\n## {title}\n")
    after = rest.partition("\n## ")
    tail = f"\n## {after[2]}" if mark and after[1] else ""
    path.write_text(f"{head.rstrip()}\n\n## {title}\n\n{text.rstrip()}\n{tail}")
