"""How a batch gets to where the model is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bita.batch import on_device
from bita.config.parts import TrainImageConfig
from bita.datasets.readers import TrainReader
from tests.datasets.makers import prepared
from tests.datasets.test_captions import build


def test_on_a_cpu_nothing_is_copied() -> None:
    images = torch.ones(2, 3, 4, 4)
    assert on_device(images, torch.device("cpu")) is images


def test_cached_pixels_are_the_files_rows_in_the_order_asked_for(tmp_path: Path) -> None:
    dataset = build(prepared(tmp_path), cache_images=True)
    assert dataset.cache is not None
    rows = [11, 0, 0, 5]  # five captions an image
    pixels = dataset.cached_pixels([5 * row + 1 for row in rows])
    assert pixels.dtype == torch.uint8
    assert pixels.numpy().tobytes() == dataset.cache.pixels[rows].tobytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cached_images_reach_a_busy_gpu_without_a_wait(tmp_path: Path) -> None:
    train = TrainImageConfig(color_jitter=0.2, vertical_flip=True, rotate90=True)
    dataset = build(prepared(tmp_path), cache_images=True, vis_processor={"train": train})
    reader = TrainReader([dataset], 1, torch.device("cuda"))
    keys = [(number, 0, number) for number in range(24)]
    expected, _ = reader.read(keys)
    matrix = torch.randn(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    for _ in range(20):
        matrix = matrix @ matrix * 1e-4
    done = torch.cuda.Event()
    done.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch, _ = reader.read(keys)
        early = not done.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert early
    assert torch.equal(batch["image"], expected["image"])
    pixels = dataset.cached_pixels(range(24), pinned=True)
    assert pixels.is_pinned()
    assert torch.equal(on_device(pixels, torch.device("cuda")).cpu(), pixels)
