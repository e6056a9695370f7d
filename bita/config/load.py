"""From YAML files and `--options` to one checked configuration, without importing torch.

Layers, later ones win: schema defaults ← the model's defaults (`configs/models/`, chosen by `model.arch` and
`model.model_type`) ← each dataset's defaults (`configs/datasets/` and the folders in `env.dataset_configs`) ← the
project file ← `--options key=value …`. The model's `preprocess` gives the defaults of each dataset's processors.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bita import registry
from bita.config.checks import check, check_files, check_imports
from bita.config.layers import Layer, interpolated, merge, read_layer, read_options, to_yaml
from bita.config.published import (
    DEFAULT_PROCESSORS,
    rename_processors,
    settle_resume,
    settle_weights,
    warn_without_effect,
)
from bita.config.schema import Config, EnvConfig, ModelConfig, ProjectFile, RunConfig
from bita.config.types import build, check_keys, nearest, unknown, wrong
from bita.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

MODEL_TYPES: dict[str, dict[str, str | tuple[str, ...]]] = {
    "bita_former": {
        "pretrain": "bita_pretrain.yaml",
        "pretrain_vitL": "bita_pretrain_vitL.yaml",
        "pretrain_qformer_vitL": ("bita_pretrain_vitL.yaml", "bita_qformer.yaml"),
        "pretrain_tiny": "bita_pretrain_tiny.yaml",
    },
    "bita_opt": {
        "pretrain_opt2.7b": "bita_pretrain_opt2.7b.yaml",
        "pretrain_opt6.7b": "bita_pretrain_opt6.7b.yaml",
        "caption_opt2.7b": "bita_caption_opt2.7b.yaml",
        "caption_opt6.7b": "bita_caption_opt6.7b.yaml",
        "caption_rsicd_opt2.7b": "bita_caption_opt2.7b.yaml",
        "pretrain_qformer_opt2.7b": ("bita_pretrain_opt2.7b.yaml", "bita_qformer.yaml"),
        "caption_qformer_opt2.7b": ("bita_caption_opt2.7b.yaml", "bita_qformer.yaml"),
        "caption_tiny": "bita_caption_tiny.yaml",
    },
}
"""arch → model_type → file in configs/models/bita, or several, later ones win; a model_type may also be the path of a
YAML file."""


def load_config(path: str | Path, options: Sequence[str] = (), *, need_files: bool = True) -> Config:
    """Load a project file with its defaults and options.

    Args:
        path: a YAML file with `model`, `datasets` and `run`.
        options: `key=value` pairs with dotted keys.
        need_files: whether a checkpoint or weights file that is not there is an error; else it is a warning.

    Raises:
        ConfigError: one line that names the key, where it stands, and the nearest valid name.
    """
    own = _read_own(Path(path), options)
    given = merge(*own)
    _check_given(given, path)
    model = _model_defaults(given)
    _drop_other_sizes(model, given)
    datasets = _dataset_defaults(given)
    preprocess = merge(model.part("preprocess"), given.part("preprocess"))
    layers = [_schema_defaults(), model.part("model").under("model")]
    for name, defaults in datasets.items():
        entry = merge(defaults, given.part("datasets", name))
        layers.append(_processor_defaults(preprocess, entry).under("datasets", name))
        layers.append(defaults.under("datasets", name))
    merged = merge(*layers, *own)
    merged.content.pop("preprocess", None)
    merged.content["datasets"] = {name: merged.content["datasets"][name] for name in datasets}
    places = merged.places
    cfg = build(Config, interpolated(merged.content, places), places)
    warn_without_effect(
        [given, *(layer.under("datasets", n) for n, layer in datasets.items() if not layer.shipped)]
    )
    settle_weights(cfg, places)
    settle_resume(cfg, places)
    declared = {name: layer.part("build_info", "annotations").content for name, layer in datasets.items()}
    check(cfg, places, declared)
    check_files(cfg, places, only_warn=not need_files)
    return cfg


def config_to_yaml(cfg: Config) -> str:
    """The resolved configuration as a project file, which `load_config` reads as the same configuration."""
    return to_yaml(config_to_dict(cfg))


def config_to_dict(cfg: Config) -> dict[str, Any]:
    """Plain dictionaries, as YAML and JSON can hold."""
    return dataclasses.asdict(cfg)


def config_from_dict(content: dict[str, Any]) -> Config:
    """The opposite of `config_to_dict`; nothing is read or imported.

    Raises:
        ConfigError: a key or type that this version does not know.
    """
    return build(Config, content, {(): "saved configuration"})


def _read_own(path: Path, options: Sequence[str]) -> list[Layer]:
    """The user's own layers: the project file, then each option."""
    if not path.exists():
        shipped = sorted(
            str(file.relative_to(CONFIGS.parent)) for file in (CONFIGS / "projects").rglob("*.yaml")
        )
        raise ConfigError(f"--cfg-path {path}: no such file; {nearest(str(path), shipped)}")
    project = read_layer(path)
    entries = project.content.get("datasets")
    if isinstance(entries, dict):  # a bare name takes the dataset as it is
        project.content["datasets"] = {
            name: {} if entry is None else entry for name, entry in entries.items()
        }
    own = [project, *read_options(options)]
    for layer in own:
        rename_processors(layer.part("preprocess"), "preprocess")
        for name in layer.part("datasets").names():
            rename_processors(layer.part("datasets", name), "datasets", name)
    return own


def _check_given(given: Layer, path: str | Path) -> None:
    """Keys have no typing errors, user modules can be imported, model and datasets are named."""
    entries = given.part("datasets")
    if entries.names():  # an option `datasets.NAME=null` takes one away
        given.content["datasets"] = {n: entry for n, entry in entries.content.items() if entry is not None}
    check_keys(ProjectFile, given.content, given.places)
    _import_modules(given)
    for key in ("arch", "model_type"):
        if not isinstance(given.part("model").content.get(key), str):
            raise wrong(("model", key), given.places, f"is missing; name it in {path} or in --options")
    if not given.part("datasets").names():
        raise wrong(
            ("datasets",), given.places, f"name at least one in {path} or in --options, such as ucm_caption"
        )


def _import_modules(given: Layer) -> None:
    """Import the modules under `imports`, which register the user's own classes; they may lie in the current folder."""
    modules = given.content.get("imports")
    if modules is None:
        return
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    for module in check_imports(modules, given.places):
        try:
            importlib.import_module(module)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise wrong(("imports",), given.places, f"{module} cannot be imported ({reason})") from error


def _schema_defaults() -> Layer:
    asdict = dataclasses.asdict
    return Layer({"model": asdict(ModelConfig()), "run": asdict(RunConfig()), "env": asdict(EnvConfig())})


def _model_defaults(given: Layer) -> Layer:
    """The YAML of the arch and model type that were asked for; archs of the user's own may have none."""
    arch, kind = given.content["model"]["arch"], given.content["model"]["model_type"]
    if arch not in registry.models:
        raise unknown(("model", "arch"), registry.models.kind, arch, registry.models.names(), given.places)
    if kind.endswith((".yaml", ".yml")):
        return read_layer(Path(kind))
    known = MODEL_TYPES.get(arch)
    if known is None:
        return Layer()
    if kind not in known:
        raise unknown(("model", "model_type"), f"type of {arch}", kind, known, given.places)
    files = known[kind]
    files = (files,) if isinstance(files, str) else files
    return merge(*(read_layer(CONFIGS / "models/bita" / file, shipped=True) for file in files))


def _drop_other_sizes(model: Layer, given: Layer) -> None:
    """Sizes of another type of language model than the one asked for would only mix with its own."""
    sizes = model.part("model", "opt_config").content
    wanted = given.part("model", "opt_config").content
    family = wanted.get("model_type") if isinstance(wanted, dict) else None
    if family is not None and isinstance(sizes, dict) and sizes.get("model_type") != family:
        model.content["model"]["opt_config"] = {}


def _dataset_defaults(given: Layer) -> dict[str, Layer]:
    """The entry of each dataset that was asked for, from the folders of dataset files.

    A dataset that is in none of them may be described in the project file itself, with its files and images.
    """
    folders: Any = given.part("env", "dataset_configs").content or []
    if not isinstance(folders, list):
        raise wrong(("env", "dataset_configs"), given.places, "wanted a list of folders")
    known = _read_datasets(CONFIGS / "datasets", {}, shipped=True)
    for folder in map(Path, map(str, folders)):
        if not folder.is_dir():
            raise wrong(("env", "dataset_configs"), given.places, f"{folder}: no such folder")
        known = _read_datasets(folder, known)
    chosen = {}
    for name in given.part("datasets").names():
        if name not in known and not {"annotations", "images"} <= set(
            given.part("datasets", name, "build_info").names()
        ):
            raise unknown(("datasets", name), "dataset", name, known, given.places)
        chosen[name] = known.get(name, Layer())
        whole = chosen[name].under("datasets", name)
        check_keys(ProjectFile, whole.content, whole.places)
    return chosen


def _read_datasets(folder: Path, known: dict[str, Layer], *, shipped: bool = False) -> dict[str, Layer]:
    """Dataset name → entry, of all YAML files below a folder, and those known before."""
    found = dict(known)
    for file in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        layer = read_layer(file, shipped=shipped).part("datasets")
        for name in layer.names():
            if name in found:
                raise wrong((name,), layer.places, "a dataset of this name is described in another file too")
            found[name] = layer.part(name)
    return found


def _processor_defaults(preprocess: Layer, entry: Layer) -> Layer:
    """What a dataset's processors take where its own entry says nothing: nothing of a processor of another name."""
    defaults = Layer()
    for kind, mode in DEFAULT_PROCESSORS:
        default = preprocess.part(kind, mode)
        default = merge(Layer({"name": DEFAULT_PROCESSORS[kind, mode]}), default)
        name = entry.part(kind, mode).content.get("name")
        if name in (None, default.content["name"]):
            defaults = merge(defaults, default.under(kind, mode))
    return defaults
