"""Rows of benchmark.py about what goes in: host time of a pair, and stage 1 with a model so small that input decides.

The other side is what one would write without this package: a torch DataLoader over pairs, each opened by PIL, cropped
and turned by torchvision, its caption tokenized alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from full_size import TINY
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from turns import Row, compare, same_lists, same_values

from bita import registry
from bita.build import build_model
from bita.config.load import load_config
from bita.config.schema import Config
from bita.datasets.builders import Needs, build_dataset
from bita.datasets.captions import CaptionDataset, seeded
from bita.datasets.loaders import TrainLoader
from bita.datasets.synthetic import generate
from bita.models.bita_itc import BitaITC
from bita.prepare.tokenizers import make_bert, read_captions
from bita.processors.image import CLIP_MEAN, CLIP_STD, TrainImageProcessor
from bita.runners.stepper import Stepper

CAPTIONS = 5
PAIRS = 60
"""Pairs of a batch, whether five share an image or none does."""
STAGE_1 = "configs/projects/bita/train/pretrain_stage1_tiny.yaml"
ONE_LEVEL = 1.01 / 255 / min(CLIP_STD)
"""A level of a pixel's 256, normalised: what rounding may differ by."""


class Plain(Dataset[tuple[Tensor, Tensor, str]]):
    """Pairs of an image and a caption's ids (and the caption itself, which stage 1 compares), each made alone."""

    def __init__(self, data: CaptionDataset, size: int, tokenizer: Any, longest: int) -> None:
        from torchvision import transforms

        self.files = [data.folder / record.image for record in data.records]
        self.captions = [record.caption for record in data.records]
        self.clean, self.tokenizer, self.longest = data.processors.eval_text, tokenizer, longest
        bicubic = transforms.InterpolationMode.BICUBIC
        self.finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(CLIP_MEAN, CLIP_STD)])
        self.crop = transforms.RandomResizedCrop(size, (0.5, 1.0), interpolation=bicubic)
        self.flip = transforms.RandomHorizontalFlip()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        with Image.open(self.files[index]) as image:
            pixels: Tensor = self.finish(self.flip(self.crop(image.convert("RGB"))))
        caption = self.clean(self.captions[index])
        return pixels, self.ids(caption), caption

    def ids(self, caption: str) -> Tensor:
        """One caption's ids, padded."""
        found: Tensor = self.tokenizer(
            caption, padding="max_length", truncation=True, max_length=self.longest, return_tensors="pt"
        ).input_ids[0]
        return found


class Setting:
    """Synthetic scenes on the disk, a very small stage-1 model, and what reads one for the other."""

    def __init__(self, scratch: Path, small: bool) -> None:
        self.side, images = (28, 36) if small else (224, 480)
        generate(scratch / "synthetic", train=images, val=1, test=1, size=64 if small else 256)
        annotations = scratch / "synthetic/annotations/train.json"
        make_bert(read_captions([annotations]), scratch / "tokenizers/bert", 600)
        self.scratch = scratch
        self.cfg = self.config(None)
        torch.manual_seed(0)
        model = build_model(self.cfg.model, load_weights=True)
        assert isinstance(model, BitaITC)
        self.model = model
        self.data = self.dataset(self.cfg)

    def config(self, captions: int | None) -> Config:
        """A configuration in which an image comes with so many captions; None: a pair a record."""
        options = [
            f"env.cache_root={self.scratch}",
            "model.vit_model=timm:vit_small_patch16_224",
            *TINY,
            f"model.image_size={self.side}",
            f"datasets.synthetic_caption.captions_per_image={'null' if captions is None else captions}",
            "datasets.synthetic_caption.vis_processor.train={min_scale: 0.5, color_jitter: 0, vertical_flip: false, "
            "rotate90: false}",
            "datasets.synthetic_caption.synthetic={}",
            f"run.batch_size_train={PAIRS // (captions or 1)}",
        ]
        return load_config(STAGE_1, options, need_files=False)

    def dataset(self, cfg: Config) -> CaptionDataset:
        """The training images of a configuration."""
        (name, entry), *_ = cfg.datasets.items()
        data = build_dataset(name, entry, cfg.env, "train", Needs.of(cfg.model), train=True)
        assert isinstance(data, CaptionDataset)
        return data

    def loader(self, captions: int | None, device: torch.device | None = None) -> TrainLoader:
        """Ours: from the cache of decoded images."""
        cfg = self.config(captions)
        return TrainLoader([self.dataset(cfg)], cfg.run, device=device)

    def plain(self, workers: int) -> DataLoader[Any]:
        """Theirs."""
        pairs = Plain(self.data, self.side, self.model.tokenizer, self.model.cfg.max_txt_len)
        return DataLoader(
            pairs, PAIRS, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
        )

    def check(self) -> str:
        """Assert that both make the same of an image and of a caption; the same crop is given to both."""
        plain = self.plain(0).dataset
        assert isinstance(plain, Plain)
        ours = self.data.processors.train_image
        assert isinstance(ours, TrainImageProcessor)
        worst = []
        for index in range(0, len(self.data.records), CAPTIONS * 4):
            image = Image.open(plain.files[index]).convert("RGB")
            draw = ours.augmentation(image.width, image.height, seeded(0, index))
            box = (draw.left, draw.top, draw.left + draw.width, draw.top + draw.height)
            theirs = plain.finish(image.crop(box).resize((self.side, self.side), Image.Resampling.BICUBIC))
            theirs = theirs.flip(-1) if draw.horizontal_flip else theirs
            worst.append((ours.draw(image, seeded(0, index)) - theirs).abs().max())
        same_values("pixels", torch.stack(worst) + 1, torch.ones(len(worst)), ONE_LEVEL)
        texts = [plain.clean(text) for text in plain.captions[:PAIRS]]
        own = self.model.tokenize(texts).tolist()
        same_lists("token ids", own, [plain.ids(text).tolist() for text in texts])
        return "token ids; pixels within 1 of 256"


def input(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """CPU time of a pair in one process, with all work done here, and with the device's work left out.

    What is left out are some 40 operations a batch, which a host has to launch but not to do; `meta` would do them in
    Python, at many times that cost.
    """
    setting = Setting(scratch, args.small)
    same, batches, threads = setting.check(), 2 if args.small else 8, torch.get_num_threads()
    torch.set_num_threads(1)  # so that CPU time is counted
    rows = []
    for what, captions, device in (
        ("pairs, all on the CPU", None, "cpu"),
        (f"{CAPTIONS} captions an image, all on the CPU", CAPTIONS, "cpu"),
        ("pairs, crops and flips left to a device", None, "meta"),
        (f"{CAPTIONS} captions an image, crops and flips left to a device", CAPTIONS, "meta"),
    ):
        loaders = (setting.loader(captions, torch.device(device)), setting.plain(0))
        sides = [partial(read, batches_of(loader), batches, setting.model) for loader in loaders]
        with patch.object(TrainImageProcessor, "on_device", lambda _, pixels, draws: pixels):
            rows += compare(
                f"input, {what}",
                sides,
                against="PIL and torchvision, pair by pair",
                unit="pair",
                units=batches * PAIRS,
                rounds=args.rounds,
                same=same,
                wanted=50 if device == "meta" and captions else None,
            )
    torch.set_num_threads(threads)
    return rows


def batches_of(loader: Iterable[Any]) -> Iterator[Any]:
    """Batches without end, epoch after epoch."""
    epoch = 0
    while True:
        if isinstance(loader, TrainLoader):
            loader.set_epoch(epoch)
        yield from loader
        epoch += 1


def read(source: Iterator[Any], batches: int, model: BitaITC) -> None:
    """Read some batches; captions become ids here where the loader leaves them as text."""
    for batch in islice(source, batches):
        if isinstance(batch, dict):
            model.tokenize(batch["text"])


def epoch(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """Training steps of the very small model from our loader and from the other, which has two workers."""
    setting = Setting(scratch, args.small)
    same, batches = setting.check(), 2 if args.small else 40
    device = torch.device("cpu")
    model = setting.model.place(device).train()
    stepper = Stepper(model, registry.tasks.get(setting.cfg.run.task)(setting.cfg), setting.cfg.run, device)
    theirs = batches_of(setting.plain(0 if args.small else 2))

    def step(batch: Any) -> None:
        stepper.accumulate(batch, share=1.0, last=True)
        stepper.optimizer_step(1e-4)

    def train(source: Iterator[Any]) -> None:
        for batch in islice(source, batches):
            if isinstance(batch, dict):
                step(batch)
                continue
            pixels, ids, captions = batch
            with patch.object(model, "_encode", lambda _, ids=ids: ids):  # these are there already
                step({"image": pixels, "text": list(captions), "image_id": list(range(len(ids)))})

    rows = []
    for what, captions in (("pairs", None), (f"{CAPTIONS} captions an image", CAPTIONS)):
        ours = batches_of(setting.loader(captions))
        rows += compare(
            f"epoch, {what}",
            [partial(train, ours), partial(train, theirs)],
            against="torch DataLoader, 2 workers",
            unit="pair",
            units=batches * PAIRS,
            rounds=args.rounds,
            same=same,
            wanted=None if captions is None else 3,
        )
    return rows
