"""A checkout in which somebody followed the README: data prepared, the quickstart run; all of it in small."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.datasets.makers import SPLITS, karpathy_record, nwpu_source, write_image
from tests.shell import ROOT, Said, Shell

LINKS = ("bita", "configs", "docs", "scripts", "tests", "pyproject.toml", "requirements.txt")
PROGRAMS = ("train.py", "evaluate.py", "caption.py")
SCENES = {"train": 48, "val": 20, "test": 8, "size": 64, "seed": 3}
RUN = "output/quickstart/caption"
STAGES = ("pretrain_stage1", "pretrain_stage2", "caption")
SHORT = ["model.image_size=64", "run.max_epoch=1", "run.warmup_steps=1", "run.device=cpu"]
NARROW = ["model.bridge_size.hidden_size=32", "model.bridge_size.intermediate_size=64"]
TINY = [*NARROW, "model.vit_args.channels=[8,16,16,32]"]
TINY_STAGE_2 = "configs/projects/bita/train/pretrain_stage2_tiny.yaml"
PREPARE = """
python scripts/prepare_data.py nwpu_caption  path/to/NWPU   data/nwpu
python scripts/prepare_data.py rsicd_caption path/to/RSICD  data/rsicd
python scripts/prepare_data.py ucm_caption   path/to/UCM    data/ucm
"""


class Checkout(Shell):
    """The folder of a checkout.

    Attributes:
        whole: whether all is there that its fixture makes.
        did: the words of what ran until then; these do not run again.
        quickstart: what `bash scripts/quickstart.sh` said.
        trained: the captioning run that it left.
    """

    quickstart: Said
    trained: Path

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, self._adapted)
        self.whole = False
        self.did: list[list[str]] = []
        for name in (*LINKS, *PROGRAMS):
            (folder / name).symlink_to(ROOT / name)
        listed = 'eval "$(grep ^wanted= scripts/setup.sh)"; echo "$wanted" > .venv/.bita-setup'
        subprocess.run(["bash", "-c", listed], cwd=folder, check=True)  # set up already
        for name in ("pip", "sbatch"):  # `pip install` has nothing to do; sbatch takes a script that is there
            (self.bin / name).write_text('#!/usr/bin/env bash\n[ "$1" = install ] || bash -n "$1" "$2"\n')
            (self.bin / name).chmod(0o755)

    def _adapted(self, words: list[str]) -> list[str] | None:
        instead = adapted(words)
        key = [word for before, word in zip(["", *words], words, strict=False) if before != "--seconds"]
        if instead is None or key in self.did:
            return None
        if not self.whole:
            self.did.append(key)
        return instead


def adapted(words: list[str]) -> list[str] | None:
    """What runs in the place of what a document says: the same but smaller, `--check`, `--help`, or nothing (None)."""
    line = " ".join(words)
    if words[0] in ("train.py", "evaluate.py", "bita-train", "bita-evaluate"):
        return words if "--check" in words else [*words, *sizes(line)]
    for pattern, (more, _) in SMALLER.items():
        if re.search(pattern, line):
            return None if more is None else [*words, *more]
    return words


def sizes(line: str) -> list[str]:
    """What is said besides in a training or an evaluation: sizes of a small recipe; --check for the others."""
    if not re.search(r"_(tiny|small|own|box)|/decoder_", line):
        return ["--check"]
    options = ["--options", *SHORT]
    tiny, synthetic = re.search("tiny|/decoder_", line), "_synthetic" in line
    if "evaluate.py" not in line:
        options += [f"run.batch_size_train={16 if tiny or synthetic else 8}"]
    if tiny or synthetic:
        options += TINY if tiny else NARROW
    if synthetic or (tiny and "_ucm" not in line):
        options += [f"datasets.synthetic_caption.synthetic.{key}={value}" for key, value in SCENES.items()]
    return options


SMALLER: dict[str, tuple[list[str] | None, str]] = {
    r"make_synthetic\.py": ([f"--{key}={value}" for key, value in SCENES.items()], "thousands of scenes"),
    r"-m torch\.distributed\.run": (None, "waits for another machine; test_processes starts several"),
    r"-m pytest": (None, "the tests themselves"),
    r"-m bita\.app": (None, "answers until Ctrl-C; tests/app/test_load.py starts it as the page says"),
    r"draw_architecture\.py": (None, "writes into docs/; test_architecture compares"),
    r"reproduce\.py": (None, "trains for minutes; test_figures measures a small record again"),
    r"benchmark\.py (search|captioning)": (["--small", "--rounds=1"], "minutes"),
    r"calibrate\.py .*--cache-root": (None, "wants 20 images for validation; bita/box has what it leaves"),
    r"loading\.py loader": (["--help"], "wants batches of 60 captions"),
    r"loading\.py stream": (["--records=2000"], "minutes"),
    r"saving\.py": (
        [
            "--steps=0",
            f"--cfg-path={TINY_STAGE_2}",
            "--options",
            "env.cache_root=data",
            "model.init_from=null",
            *TINY,
        ],
        "the full-size model",
    ),
}
"""What is too large for a test → what is said besides (None: it is left out), and why."""


def published(folder: Path, annotations: str, images: str) -> Path:
    """A dataset as published: 16 images for training, 2 for val, 4 for test, two captions each."""
    records = []
    for split, count in zip(SPLITS, (16, 2, 4), strict=True):
        for _ in range(count):
            number = len(records) + 1
            write_image(folder / images / f"{number}.jpg", number, (40, 40))
            captions = [f"there are {number} planes", f"{number} planes near a river ."]
            records.append(karpathy_record(f"{number}.jpg", number, split, captions))
    (folder / annotations).write_text(json.dumps({"images": records}))
    return folder


def follow(checkout: Checkout, script: str) -> Said:
    """Run what must end well."""
    said = checkout(script)
    assert said.code == 0, said.out + said.err
    assert "Traceback" not in said.err
    return said


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """The checkout after `bash scripts/quickstart.sh` and the preparation of three datasets.

    Each file of tests has one of its own: the documents' commands train in it, over what the pipeline's tests read.
    """
    folder = tmp_path_factory.mktemp("checkout")
    made = Checkout(folder)
    published(folder / "path/to/UCM", "dataset.json", "imgs")
    published(folder / "path/to/RSICD", "dataset_rsicd.json", "RSICD_images")
    nwpu_source(folder / "path/to/NWPU")
    made.quickstart = follow(made, "bash scripts/quickstart.sh")
    made.trained = (folder / RUN / "latest").resolve()
    follow(made, PREPARE)
    for name in ("synthetic", "tokenizers"):
        (folder / "data" / name).symlink_to(folder / "output/quickstart/data" / name)
    made.whole = True
    yield made
    made.close()
    shutil.rmtree(folder)
