"""A captioner with random weights, and images."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bita
from bita.inference.captioner import Captioner
from tests.inference.conftest import pair
from tests.test_export import write_run
from tests.weights.test_weights import PARITY, small

__all__ = ["pair"]


def image(seed: int, side: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def as_bytes(picture: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a captioning model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("app") / "run"
    cfg = small(arch="bita_opt", opt_model=str(PARITY / "opt_model"), prompt="a photo of", image_size=56)
    write_run(replace(cfg, freeze_vit=False), folder)
    return folder


@pytest.fixture(scope="session")
def captioner(run: Path) -> Captioner:
    return bita.load(run, "cpu")
