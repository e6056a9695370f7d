"""`run.cache_features`: training and validation read what the frozen encoder said of each image once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bita import distributed
from bita.config.schema import Config
from bita.datasets.cache import FeatureCache, cache_folder
from bita.datasets.captions import CaptionDataset, Split
from bita.datasets.features import Views, encoder_hash, open_features
from bita.errors import ConfigError
from bita.models.base import BitaModel
from bita.precision import amp_dtype, autocast


def keep_features(
    model: BitaModel,
    training: Sequence[Split],
    validation: Sequence[Split],
    cfg: Config,
    device: torch.device,
) -> None:
    """Give every training set and every validation set its file of features; all processes call this.

    A file is made where it is not there yet. A set that is trained on too, and one that captions are written for by
    several views of an image, is validated from its images.

    Raises:
        ConfigError: a training set is stored as shards.
        UserError: a file cannot be made.
    """

    def encode(images: Tensor) -> Tensor:
        with autocast(device, cfg.run.amp):
            return model.raw_tokens(images.to(device))

    computed = f"{amp_dtype(device, cfg.run.amp)} {device.type}"
    encoder = encoder_hash(model.visual_encoder, f"{computed} {cfg.model.encoder_settings()}")

    def features(data: CaptionDataset, views: int | None) -> FeatureCache:
        seen = Views(data, views, cfg.run.seed)

        def named() -> Path:
            folder = cache_folder(data.folder, cfg.env.cache_root, data.name)
            return folder / f"features_{data.split}_{seen.key(encoder)}.npy"

        path, run = distributed.on_main(named), cfg.run
        return open_features(seen, encode, path, batch_size=run.batch_size_eval, workers=run.num_workers)

    model.eval()
    for data in training:
        if data.sharded:
            raise ConfigError(
                f"run.cache_features: {data.name} is stored as shards; train from the image files"
            )
        images = data.for_evaluation()
        images.features = features(images, cfg.run.cache_features)
    for images in (data.for_evaluation() for data in validation):
        if not images.train and cfg.run.views == 1:
            images.eval_features = features(images, None)
