"""A captioning run that grew from a stage-1 run, with random weights."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import bita
from bita.inference.captioner import Captioner
from bita.weights.layouts import published
from tests.datasets.makers import write_image
from tests.test_export import write_run
from tests.weights.test_weights import PARITY, small, stage_1


@dataclass
class Pair:
    """Both runs, the captioning one loaded, and some images."""

    stage1: Path
    run: Path
    captioner: Captioner
    images: list[Path]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pair")
    shutil.copytree(PARITY / "opt_model", folder / "opt")
    vision = published({n: t for n, t in stage_1().state_dict().items() if n.startswith("visual_encoder.")})
    torch.save({n.removeprefix("visual_encoder."): t for n, t in vision.items()}, folder / "clip_vit_L.pth")
    shared = {"vit_weights": str(folder / "clip_vit_L.pth"), "image_size": 56}
    write_run(small(**shared), folder / "stage1/run", task="image_text_pretrain")
    cfg = small(
        arch="bita_opt", opt_model=str(folder / "opt"), init_from=str(folder / "stage1/run"), **shared
    )
    write_run(cfg, folder / "caption/run")
    images = [write_image(folder / f"images/{number}.png", number, (40, 36)) for number in range(5)]
    return Pair(
        folder / "stage1/run", folder / "caption/run", bita.load(folder / "caption/run", "cpu"), images
    )
