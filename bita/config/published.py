"""What the published YAML files spell otherwise, or what has no effect here: understood, and said once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from bita import registry
from bita.config.layers import ANY, Keys, Layer, Places, matches, where
from bita.config.schema import Config
from bita.config.types import wrong
from bita.errors import ConfigError

LOG = logging.getLogger(__name__)

TRAIN_IMAGE, EVAL_IMAGE = "bita_image_train", "bita_image_eval"
DEFAULT_PROCESSORS = {
    ("vis_processor", "train"): TRAIN_IMAGE,
    ("vis_processor", "eval"): EVAL_IMAGE,
    ("text_processor", "train"): "bita_caption",
    ("text_processor", "eval"): "bita_caption",
}
LAVIS_PROCESSORS = {
    "blip_image_train": TRAIN_IMAGE,
    "blip_image_eval": EVAL_IMAGE,
    "blip2_image_train": TRAIN_IMAGE,
    "blip_caption": "bita_caption",
}
_FILES = ("datasets", ANY, "build_info")
WITHOUT_EFFECT: dict[Keys, str] = {
    ("run", "world_size"): "torchrun says how many processes there are",
    ("run", "dist_url"): "torchrun says where the processes meet",
    ("run", "distributed"): "torchrun says whether there are several processes",
    ("run", "use_dist_eval_sampler"): "every image is evaluated exactly once anyway",
    ("model", "apply_lemmatizer"): "captions are scored as they are",
    ("datasets", ANY, "dataset_card"): "nothing reads it",
    ("datasets", ANY, "data_type"): "all datasets are of images",
    (*_FILES, "annotations", ANY, "url"): "nothing is downloaded; see python -m bita.prepare",
    (*_FILES, "annotations", ANY, "md5"): "nothing is downloaded",
    (*_FILES, "images", "url"): "nothing is downloaded",
}
SILENT: dict[Keys, Any] = {("model", "apply_lemmatizer"): False}
"""Values that ask for what happens anyway."""


def warn_without_effect(layers: Sequence[Layer]) -> None:
    """One warning for each kind of key, among the user's own, that changes nothing here."""
    for pattern, reason in WITHOUT_EFFECT.items():
        places = [
            f"{'.'.join(keys)} ({where(keys, layer.places)})"
            for layer in layers
            for keys, value in matches(layer.content, pattern)
            if value is not None and value != SILENT.get(pattern)
        ]
        if places:
            more = f" and {len(places) - 1} more" if len(places) > 1 else ""
            LOG.warning("%s%s: has no effect here, %s", places[0], more, reason)


def rename_processors(layer: Layer, *above: str) -> None:
    """Give processors of LAVIS our names, and an evaluation that would crop at random the evaluation transform.

    Args:
        layer: changed in place; `vis_processor` and `text_processor` stand at its top.
        above: the keys that it stands under, for messages.
    """
    for kind, mode in DEFAULT_PROCESSORS:
        entry = layer.part(kind, mode).content
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            continue
        keys, name = (kind, mode, "name"), entry["name"]
        what = f"{'.'.join((*above, *keys))} ({where(keys, layer.places)})"
        if name in LAVIS_PROCESSORS and name not in registry.processors:
            entry["name"] = LAVIS_PROCESSORS[name]
            LOG.warning("%s: %s is called %s here", what, name, entry["name"])
        if (kind, mode) == ("vis_processor", "eval") and entry["name"] == TRAIN_IMAGE:
            entry["name"] = EVAL_IMAGE
            LOG.warning("%s: %s would score random crops; %s is used", what, TRAIN_IMAGE, EVAL_IMAGE)


def settle_weights(cfg: Config, places: Places) -> None:
    """One wish, five spellings: leave only `model.init_from`.

    `pretrained` and `finetuned` count when they name something, unless `load_pretrained` or `load_finetuned` is
    false. `places` learns where `init_from` comes from.

    Raises:
        ConfigError: two spellings name different weights, or one is switched on without a path.
    """
    model = cfg.model
    wishes = {"init_from": model.init_from} if model.init_from else {}
    for key, switch in (("finetuned", model.load_finetuned), ("pretrained", model.load_pretrained)):
        path = getattr(model, key)
        if switch and not path:
            keys = ("model", f"load_{key}")
            raise wrong(
                keys, places, f"is true, but model.{key} names no file; set it, or load_{key} to false"
            )
        if path and switch is False:
            place = where(("model", key), places)
            LOG.warning("model.%s (%s): not used, since model.load_%s is false", key, place, key)
        elif path:
            wishes[key] = path
    if len(set(wishes.values())) > 1:
        named = ", ".join(f"{key} {path} ({where(('model', key), places)})" for key, path in wishes.items())
        raise ConfigError(f"model: weights from two sources, {named}; keep one and set the others to null")
    for key, path in wishes.items():
        model.init_from = path
        places[("model", "init_from")] = where(("model", key), places)
    model.init_from = model.init_from or None
    model.pretrained = model.finetuned = model.load_pretrained = model.load_finetuned = None


def settle_resume(cfg: Config, places: Places) -> None:
    """Leave only `run.resume` of it and its published spelling, `run.resume_ckpt_path`.

    Raises:
        ConfigError: they differ.
    """
    run, keys = cfg.run, ("run", "resume_ckpt_path")
    if run.resume_ckpt_path:
        if run.resume not in (None, run.resume_ckpt_path):
            raise wrong(keys, places, f"{run.resume_ckpt_path} and run.resume={run.resume} differ; keep one")
        run.resume = run.resume_ckpt_path
        places[("run", "resume")] = where(keys, places)
    run.resume_ckpt_path = None
