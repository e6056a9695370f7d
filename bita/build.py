"""Models: built from a configuration, with their weights."""

from __future__ import annotations

import sys

from bita.checkpoint import resolve_checkpoint, split_choice
from bita.config.schema import ArchConfig
from bita.distributed import is_main
from bita.machine import model_is_built
from bita.models.base import BitaModel
from bita.registry import bridges, models
from bita.weights.downloads import local_file
from bita.weights.load import load_bert, load_checkpoint, load_vision
from bita.weights.outside import warn_of_others
from bita.weights.report import LoadReport


def build_model(cfg: ArchConfig, *, load_weights: bool = True) -> BitaModel:
    """Build the model that `cfg.arch` names.

    Args:
        cfg: sizes and where weights come from.
        load_weights: false leaves every weight random and reads no file but tokenizers that lie in a local folder
            (for tests, benchmarks, the `meta` device).

    Raises:
        UserError: a file is missing or does not fit.
    """
    model: BitaModel = models.get(cfg.arch).from_config(cfg, load_weights)
    if load_weights:
        for report in _load_all(model, cfg):
            if is_main():
                print(report, file=sys.stderr)
    model_is_built()  # after reading weights: what that has freed may go
    return model


def _load_all(model: BitaModel, cfg: ArchConfig) -> list[LoadReport]:
    reports = []
    if cfg.vit_weights is not None:
        source, choice = split_choice(cfg.vit_weights)
        reports.append(load_vision(model, local_file(source), choice))
    if cfg.init_from is not None:
        source, choice = split_choice(cfg.init_from)
        checkpoint = resolve_checkpoint(local_file(source))
        reports.append(load_checkpoint(model, checkpoint, choice))
        if is_main():
            warn_of_others(model, checkpoint)
        return reports
    model.check_frozen_parts()
    if cfg.text_model is not None and bridges.config(cfg.bridge).from_bert:
        reports.append(load_bert(model, *split_choice(cfg.text_model)))
    return reports
