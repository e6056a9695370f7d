"""From YAML files and `--options` to one checked configuration, without importing torch.

Layers, later ones win: schema defaults ← the model's defaults (`configs/models/`, chosen by `model.arch` and
`model.model_type`) ← each dataset's defaults (`configs/datasets/`) ← the project file ← `--options key=value …`.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bita import registry
from bita.config_layers import Keys, Layer, merge, read_layer, read_options
from bita.config_types import build, unknown, where, wrong
from bita.errors import ConfigError
from bita.schema import Config, EnvConfig, RunConfig

LOG = logging.getLogger(__name__)

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

MODEL_TYPES: dict[str, dict[str, str]] = {
    "bita_former": {
        "pretrain": "bita_pretrain_vitL.yaml",
        "pretrain_vitL": "bita_pretrain_vitL.yaml",
        "pretrain_tiny": "bita_pretrain_tiny.yaml",
    },
    "bita_opt": {
        "pretrain_opt2.7b": "bita_pretrain_opt2.7b.yaml",
        "caption_opt2.7b": "bita_caption_opt2.7b.yaml",
        "caption_rsicd_opt2.7b": "bita_caption_opt2.7b.yaml",
        "caption_tiny": "bita_caption_tiny.yaml",
    },
}
"""arch → model_type → file in configs/models/bita; a model_type may also be the path of a YAML file."""

WITHOUT_EFFECT: dict[Keys, str] = {
    ("run", "world_size"): "torchrun says how many processes there are",
    ("run", "dist_url"): "torchrun says where the processes meet",
    ("run", "distributed"): "torchrun says whether there are several processes",
    ("run", "use_dist_eval_sampler"): "every image is evaluated exactly once",
    ("model", "apply_lemmatizer"): "captions are scored as they are",
}
DATASET_WITHOUT_EFFECT = {
    "dataset_card": "nothing reads it",
    "data_type": "only images are read",
}


def load_config(path: str | Path, options: Sequence[str] = ()) -> Config:
    """Load a project file with its defaults and options.

    Args:
        path: a YAML file with `model`, `datasets` and `run`.
        options: `key=value` pairs with dotted keys.

    Raises:
        ConfigError: one line that names the key, where it stands, and the nearest valid name.
    """
    given = merge(read_layer(Path(path)), read_options(options))
    _import_modules(given)
    defaults = _model_defaults(given)
    preprocess = merge(defaults.part("preprocess"), given.part("preprocess"))
    layers = [_schema_defaults(), defaults.part("model").under("model")]
    for name in _dataset_names(given):
        layers.append(preprocess.under("datasets", name))
        layers.append(_dataset_defaults(name, given).under("datasets", name))
    merged = merge(*layers, given)
    merged.content.pop("preprocess", None)
    merged.content["datasets"] = {
        n: d for n, d in merged.content.get("datasets", {}).items() if d is not None
    }
    cfg = build(Config, _interpolated(merged.content, str(path)), (), merged.places)
    _check_names(cfg, merged.places)
    _check_splits(cfg, merged.places)
    _warn_without_effect(given)
    _settle_weights(cfg, merged.places)
    _settle_resume(cfg, merged.places)
    return cfg


def config_to_dict(cfg: Config) -> dict[str, Any]:
    """Plain dictionaries, as YAML and JSON can hold."""
    return dataclasses.asdict(cfg)


def config_from_dict(content: dict[str, Any]) -> Config:
    """The opposite of `config_to_dict`.

    Raises:
        ConfigError: a key or type that this version does not know.
    """
    return build(Config, content, (), {})


def config_to_yaml(cfg: Config) -> str:
    """The resolved configuration as a project file, which loads to the same configuration."""
    return yaml.safe_dump(config_to_dict(cfg), sort_keys=False, allow_unicode=True)


def _import_modules(given: Layer) -> None:
    """Import the modules under `imports`, which register the user's own classes."""
    modules = given.content.get("imports") or []
    for module in modules if isinstance(modules, list) else [modules]:
        try:
            importlib.import_module(str(module))
        except ImportError as error:
            place = where(("imports",), given.places)
            raise ConfigError(f"imports ({place}): module {module!r} cannot be imported ({error})") from error


def _schema_defaults() -> Layer:
    content = {"env": dataclasses.asdict(EnvConfig()), "run": dataclasses.asdict(RunConfig())}
    return Layer({"model": {}, "datasets": {}, **content}, shipped=True)


def _model_defaults(given: Layer) -> Layer:
    """The YAML of the arch and model type that were asked for."""
    model = given.part("model")
    if not isinstance(model.content, dict):
        raise wrong(("model",), given.places, "wanted keys such as arch and model_type")
    for key in ("arch", "model_type"):
        if key not in model.content:
            place = where(("model",), given.places)
            raise ConfigError(f"model.{key} ({place}): is missing; see configs/projects for complete files")
    arch, kind = str(model.content["arch"]), str(model.content["model_type"])
    if arch not in registry.models:
        raise unknown(
            "model.arch", "model", arch, registry.models.names(), where(("model", "arch"), given.places)
        )
    if kind.endswith((".yaml", ".yml")):
        return read_layer(Path(kind), shipped=True)
    known = MODEL_TYPES.get(arch, {})
    if kind not in known:
        place = where(("model", "model_type"), given.places)
        raise unknown("model.model_type", f"type of {arch}", kind, known, place)
    return read_layer(CONFIGS / "models/bita" / known[kind], shipped=True)


def _dataset_names(given: Layer) -> list[str]:
    datasets = given.content.get("datasets")
    if not isinstance(datasets, dict) or not any(value is not None for value in datasets.values()):
        raise ConfigError(
            f"datasets ({where(('datasets',), given.places)}): name at least one, such as ucm_caption"
        )
    return [name for name, value in datasets.items() if value is not None]


def _dataset_defaults(name: str, given: Layer) -> Layer:
    """The entry of a dataset in some file below configs/datasets, or nothing when the project file describes it."""
    shipped: dict[str, Layer] = {}
    for file in sorted((CONFIGS / "datasets").rglob("*.yaml")):
        layer = read_layer(file, shipped=True).part("datasets")
        shipped |= {key: layer.part(key) for key in layer.content}
    if name in shipped:
        return shipped[name]
    own = given.content["datasets"][name]
    if not isinstance(own, dict) or "build_info" not in own:
        raise unknown("datasets", "dataset", name, shipped, where(("datasets", name), given.places))
    return Layer()


def _interpolated(content: dict[str, Any], path: str) -> dict[str, Any]:
    """Resolve `${run.output_dir}` and its like."""
    try:
        resolved: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(content), resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(f"configuration {path}: {str(error).splitlines()[0]}") from error
    return resolved


def _check_names(cfg: Config, places: dict[Keys, str]) -> None:
    """Names of tasks, runners, schedules and processors."""
    for key, names in (
        ("task", registry.tasks),
        ("runner", registry.runners),
        ("lr_sched", registry.schedules),
    ):
        name = getattr(cfg.run, key)
        if name not in names:
            raise unknown(f"run.{key}", names.kind, name, names.names(), where(("run", key), places))
    for dataset, entry in cfg.datasets.items():
        for kind in ("vis_processor", "text_processor"):
            for mode, processor in getattr(entry, kind).items():
                keys = ("datasets", dataset, kind, mode)
                if mode not in ("train", "eval"):
                    raise unknown(".".join(keys), "key", mode, ("train", "eval"), where(keys, places))
                if processor.name not in registry.processors:
                    known, place = registry.processors.names(), where((*keys, "name"), places)
                    raise unknown(".".join((*keys, "name")), "processor", processor.name, known, place)


def _check_splits(cfg: Config, places: dict[Keys, str]) -> None:
    """Every split that is asked for is declared by every dataset."""
    for key in ("train_splits", "valid_splits", "test_splits"):
        for split in getattr(cfg.run, key):
            for dataset, entry in cfg.datasets.items():
                declared = entry.build_info.annotations
                if split not in declared:
                    raise unknown(
                        f"run.{key}", f"split of {dataset}", split, declared, where(("run", key), places)
                    )


def _warn_without_effect(given: Layer) -> None:
    """One warning for each of the user's own keys that changes nothing here."""
    reasons = dict(WITHOUT_EFFECT)
    for dataset in given.content["datasets"]:
        reasons |= {("datasets", dataset, key): reason for key, reason in DATASET_WITHOUT_EFFECT.items()}
    for keys, reason in reasons.items():
        value: Any = given.content
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value not in (None, False):
            LOG.warning("%s (%s): has no effect here: %s", ".".join(keys), where(keys, given.places), reason)


def _settle_weights(cfg: Config, places: dict[Keys, str]) -> None:
    """One wish, five spellings: leave only `init_from`.

    Raises:
        ConfigError: two spellings name different weights, one is switched on without a path, or a path is missing.
    """
    model = cfg.model
    wishes = {} if model.init_from is None else {"init_from": model.init_from}
    for key, switch in (("finetuned", model.load_finetuned), ("pretrained", model.load_pretrained)):
        path = getattr(model, key) or None
        if switch and path is None:
            raise wrong(
                ("model", f"load_{key}"),
                places,
                f"is true, but model.{key} names no file; set it, or init_from",
            )
        if path is not None and switch is False:
            LOG.warning(
                "model.%s (%s): not used, since load_%s is false", key, where(("model", key), places), key
            )
        elif path is not None:
            wishes[key] = path
    if len(set(wishes.values())) > 1:
        named = " and ".join(
            f"model.{key}={value} ({where(('model', key), places)})" for key, value in wishes.items()
        )
        raise ConfigError(f"{named} name different weights; keep one, set the others to null")
    for key, path in wishes.items():
        if "://" not in path and not Path(path).exists():
            raise wrong(
                ("model", key), places, f"{path} does not exist; train the stage before, or name a checkpoint"
            )
        model.init_from = path
    model.pretrained = model.finetuned = model.load_pretrained = model.load_finetuned = None
    for key in ("vit_weights",):
        path = getattr(model, key)
        if path is not None and "://" not in path and not Path(path).is_file():
            raise wrong(("model", key), places, f"{path} does not exist")


def _settle_resume(cfg: Config, places: dict[Keys, str]) -> None:
    """`run.resume_ckpt_path` is the published spelling of `run.resume`."""
    published = cfg.run.resume_ckpt_path
    if published is not None and cfg.run.resume not in (None, published):
        keys = ("run", "resume_ckpt_path")
        raise wrong(keys, places, f"{published} and run.resume={cfg.run.resume} differ; keep one")
    cfg.run.resume = cfg.run.resume or published
    cfg.run.resume_ckpt_path = None
    path = cfg.run.resume
    if path not in (None, "auto") and not Path(path).exists():
        raise wrong(("run", "resume"), places, f"{path} does not exist; name a checkpoint, or auto")
