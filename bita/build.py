"""Models: built from a configuration, with their weights."""

from __future__ import annotations

import sys

from bita.checkpoint import resolve_checkpoint
from bita.config.schema import ModelConfig
from bita.distributed import is_main
from bita.errors import UserError
from bita.models.base import BitaModel
from bita.registry import models
from bita.weights.downloads import local_file
from bita.weights.load import LoadReport, load_bert, load_checkpoint, load_vision


def build_model(cfg: ModelConfig, *, load_weights: bool = True) -> BitaModel:
    """Build the model that `cfg.arch` names.

    Args:
        cfg: sizes and where weights come from.
        load_weights: False leaves every weight random and reads no file but tokenizers that lie in a local folder
            (for tests, benchmarks, the `meta` device).

    Raises:
        UserError: a file is missing or does not fit.
    """
    model: BitaModel = models.get(cfg.arch).from_config(cfg, load_weights)
    if load_weights:
        for report in _load_all(model, cfg):
            if is_main():
                print(report, file=sys.stderr)
    return model


def _load_all(model: BitaModel, cfg: ModelConfig) -> list[LoadReport]:
    reports = []
    if cfg.vit_weights is not None:
        reports.append(load_vision(model, local_file(cfg.vit_weights)))
    if cfg.init_from is not None:
        reports.append(load_checkpoint(model, resolve_checkpoint(local_file(cfg.init_from))))
        return reports
    if cfg.freeze_vit and cfg.vit_weights is None:
        raise UserError(
            f"model.vit_weights: the frozen vision encoder {cfg.vit_model} would stay random; name its weights' file, "
            "or a checkpoint that holds them in model.init_from, or set model.freeze_vit=false to train it"
        )
    if cfg.arch == "bita_opt" and cfg.opt_model is None and cfg.freeze_lm:
        raise UserError(
            "model.opt_model: the frozen language model would stay random; name its folder, or a checkpoint that "
            "holds it in model.init_from, or set model.freeze_lm=false to train it"
        )
    if cfg.text_model is not None:
        reports.append(load_bert(model, cfg.text_model))
    return reports
