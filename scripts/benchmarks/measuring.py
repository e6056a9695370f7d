"""What the benchmarks of whole models share: a batch of noise, waiting for a device, its memory."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

from bita.batch import Batch

BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12}
"""Part of a device's name → its dense bf16 operations a second, as its maker gives them (SXM where it varies)."""
WORDS = "many planes are parked near the long runway of a large airport beside some green trees and grey buildings"


def a_batch(images: int, image_size: int, device: torch.device, prompt: str = "", captions: int = 1) -> Batch:
    """Noise for images, and captions that differ, so many an image."""
    words = WORDS.split()
    texts = [" ".join(words[i % 7 : i % 7 + 8 + i % 4]) for i in range(images * captions)]
    pixels = torch.randn(images, 3, image_size, image_size, device=device)
    ids = [number for number in range(images) for _ in range(captions)]
    return {"image": pixels, "text": [f"{prompt} {t}".strip() for t in texts], "image_id": ids}


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
