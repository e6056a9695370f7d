"""`run.cache_features`: training reads what the frozen encoder said of each image once, instead of encoding it anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bita.config.schema import Config
from bita.datasets.cache import cache_folder
from bita.datasets.captions import Split
from bita.datasets.features import Views, encoder_hash, open_features
from bita.errors import ConfigError
from bita.models.base import BitaModel
from bita.precision import amp_dtype, autocast


def keep_features(model: BitaModel, datasets: Sequence[Split], cfg: Config, device: torch.device) -> None:
    """Give every training set its file of features, made where it is not there yet; all processes call this.

    Raises:
        ConfigError: a set is stored as shards.
        UserError: a file cannot be made.
    """

    def encode(images: Tensor) -> Tensor:
        with autocast(device, cfg.run.amp):
            return model.raw_tokens(images.to(device))

    precision = f"{amp_dtype(device, cfg.run.amp)} {device.type}"
    encoder = encoder_hash(model.visual_encoder, precision)
    model.eval()
    for data in datasets:
        if data.sharded:
            raise ConfigError(
                f"run.cache_features: {data.name} is stored as shards; train from the image files"
            )
        images = data.for_evaluation()
        views = Views(images, cfg.run.cache_features, cfg.run.seed)
        folder = cache_folder(images.folder, cfg.env.cache_root, data.name)
        path = folder / f"features_{data.split}_{views.key(encoder)}.npy"
        images.features = open_features(
            views, encode, path, batch_size=cfg.run.batch_size_eval, workers=cfg.run.num_workers
        )
