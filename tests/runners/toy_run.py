"""A training run in small: real models, loader, task and runner on a dozen 28-pixel images.

As a script, `toy_run.py OUTPUT_DIR key=value…` trains like `train.py` does; keys are those of `run`, and `model.KEY`.
Faults come from the environment: TOY_FAULT="KIND@STEP@RANK" with KIND nan, kill, term, slow or evalterm.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.distributed.tensor import DTensor

from bita import distributed
from bita.checkpoint import resolve_checkpoint
from bita.commands import program
from bita.config.parts import BridgeSize, ModelConfig
from bita.config.run import RunConfig
from bita.config.schema import Config
from bita.datasets.captions import CaptionDataset, CaptionRecord, Processors
from bita.models.base import BitaModel
from bita.models.bita_itc import BitaITC
from bita.models.bita_lm import BitaLM
from bita.processors.image import EvalImageProcessor, TrainImageProcessor
from bita.processors.text import CaptionProcessor
from bita.runners import seeding
from bita.runners.epoch_runner import EpochRunner
from bita.runners.run_dir import open_run_dir
from bita.tasks.base import Task
from bita.tasks.captioning import CaptioningTask
from bita.tasks.pretrain import PretrainTask
from bita.weights.load import load_checkpoint

TOKENIZERS = Path(__file__).parents[1] / "fixtures/parity/tokenizers"
SIZE = 28
WORDS = ("airport", "harbour", "river", "farmland", "tennis court", "storage tank")


def toy_config(output_dir: Path, **options: Any) -> Config:
    """Configuration of a run that takes seconds.

    Options are keys of `run`, or of the model as `model__KEY`, `model__bridge_size__KEY`.
    """
    model = ModelConfig(
        arch="bita_opt",
        vit_args={"embed_dim": 32, "num_heads": 2},
        vit_depth=1,
        image_size=SIZE,
        freeze_vit=False,
        bridge_size=BridgeSize(hidden_size=32, layers=2, heads=2, intermediate_size=64, max_positions=40),
        num_query_token=4,
        embed_dim=16,
        max_txt_len=12,
        text_tokenizer=str(TOKENIZERS / "bert"),
        opt_model=None,
        opt_tokenizer=str(TOKENIZERS / "opt"),
        opt_config={
            "vocab_size": 300,
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ffn_dim": 64,
            "max_position_embeddings": 64,
        },
        freeze_lm=False,
    )
    run = RunConfig(
        output_dir=str(output_dir),
        device="cpu",
        max_epoch=2,
        batch_size_train=2,
        batch_size_eval=4,
        num_workers=0,
        warmup_steps=3,
        init_lr=1e-3,
        log_freq=4,
        num_beams=2,
        max_len=6,
        min_len=1,
    )
    for key, value in options.items():
        part: Any = model if key.startswith("model__") else run
        *parts, name = key.removeprefix("model__").split("__")
        for between in parts:
            part = getattr(part, between)
        assert hasattr(part, name), key
        setattr(part, name, value)
    return Config(model=model, datasets={}, run=run)


def toy_dataset(folder: Path, split: str = "train", images: int = 6, captions: int = 2) -> CaptionDataset:
    """Noise images that differ in colour, with captions that name the colour's number."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(images):
        path = folder / f"{split}_{number}.png"
        if not path.exists():
            pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3)) // 2 + number * 20
            temporary = path.with_name(f"{path.name}.{os.getpid()}.png")
            Image.fromarray(pixels.astype(np.uint8)).save(temporary)
            temporary.replace(path)
        for text in range(captions):
            caption = f"there is {'a' if text % 2 else 'one'} {WORDS[number % len(WORDS)]} here"
            records.append(CaptionRecord(path.name, caption, 100 + number))
    processors = Processors(
        TrainImageProcessor(SIZE), EvalImageProcessor(SIZE), CaptionProcessor(), CaptionProcessor()
    )
    return CaptionDataset("toy", split, records, folder, processors, train=split == "train")


def toy_model(cfg: Config) -> BitaModel:
    """The model with fresh weights and the fixture's tokenizers."""
    seeding.seed_process(cfg.run.seed)
    arch = BitaITC if cfg.model.arch == "bita_former" else BitaLM
    model = arch.from_config(cfg.model, load_weights=False)
    if cfg.model.init_from is not None:
        load_checkpoint(model, resolve_checkpoint(cfg.model.init_from))
    return model


class Faulty:
    """Mixed into a task: does harm at a step of one rank, once in the life of a run folder."""

    calls = 0

    def train_step(self, model, batch):
        output = super().train_step(model, batch)
        kind, step, rank = (os.environ.get("TOY_FAULT", "@-1@-1")).split("@")
        due = self.calls == int(step) and distributed.rank() == int(rank)
        self.calls += 1
        if due and kind == "nan":
            output["loss"] = output["loss"] * torch.nan
        if due and kind in ("kill", "term") and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGTERM)
        if kind == "slow":
            time.sleep(float(step) / 1000)
        return output

    def evaluate(self, model, dataset, batches, save):
        kind, step, rank = (os.environ.get("TOY_FAULT", "@-1@-1")).split("@")

        def interrupted():
            for number, batch in enumerate(batches):
                if kind == "evalterm" and number == int(step) and distributed.rank() == int(rank):
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return super().evaluate(model, dataset, interrupted(), save)


class FaultyPretrain(Faulty, PretrainTask):
    pass


class FaultyCaptioning(Faulty, CaptioningTask):
    pass


def toy_runner(cfg: Config, images: Path) -> EpochRunner:
    """Everything built, the run folder opened."""
    distributed.setup(cfg.run.device)
    task: Task = (FaultyCaptioning if cfg.run.task == "captioning" else FaultyPretrain)(cfg)
    datasets = {
        "train": [toy_dataset(images)],
        "val": [toy_dataset(images, "val", images=5)],
        "test": [toy_dataset(images, "test", images=3)],
    }
    runner = EpochRunner(cfg, toy_model(cfg), task, datasets, open_run_dir(cfg))
    if cfg.run.parallel == "fsdp":
        note_what_is_held(runner.model, Path(cfg.run.output_dir) / "held")
    return runner


def note_what_is_held(model: BitaModel, folder: Path) -> None:
    """Write down how many bytes of the decoder this process holds, and how many it has in all."""
    decoder = list(model.get_submodule("opt_model").parameters())
    here = [p.to_local() if isinstance(p, DTensor) else p for p in decoder]
    folder.mkdir(exist_ok=True)
    numbers = (sum(p.numel() * p.element_size() for p in part) for part in (here, decoder))
    (folder / str(distributed.rank())).write_text(" ".join(map(str, numbers)))


@program
def main(arguments: list[str]) -> int:
    """Train; the exit code is that of `train.py`."""
    output_dir = Path(arguments[0])
    options: dict[str, Any] = {}
    for argument in arguments[1:]:
        key, value = argument.split("=", 1)
        try:
            options[key.replace(".", "__")] = eval(value, {"__builtins__": {}}, {})
        except (NameError, SyntaxError):
            options[key.replace(".", "__")] = value
    cfg = toy_config(output_dir, **options)
    distributed.together(lambda: toy_runner(cfg, output_dir / "images").train())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
