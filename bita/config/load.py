"""From YAML files and `--options` to one checked configuration, without importing torch.

Layers, later ones win: schema defaults ← the model's defaults (`configs/models/`, chosen by `model.arch` and
`model.model_type`) ← each dataset's defaults (`configs/datasets/` and the folders in `env.dataset_configs`) ← the
files that the project file starts from (`base: other.yaml`) ← the project file ← `--options key=value …`. The model's
`preprocess` gives the defaults of each dataset's processors.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bita import registry
from bita.checkpoint import FORMAT
from bita.config.checks import check, check_files, check_imports
from bita.config.formats import upgraded
from bita.config.hints import hint_of, is_path, kinds_of
from bita.config.inherit import stack
from bita.config.layers import Keys, Layer, Places, interpolated, merge, read_layer, to_yaml
from bita.config.options import PLACE, read_options
from bita.config.plugins import ModuleError, import_modules, load_plugins
from bita.config.published import (
    DEFAULT_PROCESSORS,
    rename_processors,
    settle_resume,
    settle_weights,
    warn_without_effect,
)
from bita.config.run import RunConfig
from bita.config.schema import ArchConfig, Config, DatasetConfig, EnvConfig, ProjectFile
from bita.config.types import build, check_keys, defaults, shown, unknown, wrong
from bita.errors import ConfigError, no_file
from bita.files import expand, user_path
from bita.registry import nearest

PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"
"""The shipped files: inside the package where it was installed, beside it in a checkout."""
VARIABLE = re.compile(r"(?<!\\)\$\{(\w+)\}")
"""`${NAME}`, unless it is escaped."""


def load_config(path: str | Path, options: Sequence[str] = (), *, need_files: bool = True) -> Config:
    """Load a project file with its defaults and options.

    Args:
        path: a YAML file with `model`, `datasets` and `run`.
        options: `key=value` pairs with dotted keys.
        need_files: whether a checkpoint or weights file that is not there is an error; else it is a warning.

    Raises:
        ConfigError: one line that names the key, where it stands, and the nearest valid name.
    """
    load_plugins()
    own = _read_own(Path(path), options)
    given = stack(*own)
    _check_given(given, path)
    model = _model_defaults(given)
    datasets = _dataset_defaults(given)
    processors = _processor_defaults(model.part("preprocess"), given.part("preprocess"))
    *_, project, _ = own
    layers = [] if _says_all(project, "model") else [model.part("model").under("model")]
    for name, layer in datasets.items():
        layers.append(processors.under("datasets", name))
        if not _says_all(project, "datasets", name):
            layers.append(layer.under("datasets", name))
    merged = stack(*layers, *own)
    merged = merge(_schema_defaults(merged), merged)
    merged.content.pop("preprocess", None)
    merged.content["datasets"] = {name: merged.content["datasets"][name] for name in datasets}
    places = merged.places
    cfg = build(Config, _interpolated(merged.content, places), places)
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
    """Return the resolved configuration as a project file, which `load_config` reads as the same configuration."""
    return to_yaml(config_to_dict(cfg))


def config_to_dict(cfg: Config) -> dict[str, Any]:
    """Plain dictionaries, as YAML and JSON can hold."""
    return dataclasses.asdict(cfg)


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that is no mapping, and the order of the datasets, which numbers the records."""
    for key, value in tree.items():
        if key == "datasets" and not prefix:
            yield key, list(value)
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def recorded_config(content: dict[str, Any], source: Path, format: int = FORMAT) -> Config:
    """Return the configuration of an earlier run, after what registers its parts: plugins, and its own `imports`.

    Args:
        content: what `config_to_dict` gave then.
        source: where it was recorded, for messages.
        format: what `meta.json` says beside it.

    Raises:
        ConfigError: a module cannot be imported, or a key or type is unknown to this version.
    """
    load_plugins()
    hint = "it was trained with that module; put its folder on PYTHONPATH"
    import_modules(content.get("imports") or [], lambda what: ModuleError(f"{source}: {what}; {hint}"))
    try:
        return config_from_dict(content)
    except ConfigError as error:
        newer = (
            f"written by a newer version (format {format}, and this one reads up to {FORMAT}); update bita: "
        )
        raise ConfigError(f"{source}: {newer if format > FORMAT else ''}{error}") from error


def config_from_dict(content: dict[str, Any]) -> Config:
    """The opposite of `config_to_dict`, for what an earlier version gave too; nothing is imported (`recorded_config`).

    Raises:
        ConfigError: a key or type that this version does not know.
    """
    return build(Config, upgraded(content), {(): "saved configuration"})


def _read_own(path: Path, options: Sequence[str]) -> list[Layer]:
    """The user's own layers: files, bases first, then the options; `configs/…` is a shipped file from any folder."""
    path = _or_shipped(path)
    if not path.exists():
        shipped = sorted(
            str(file.relative_to(CONFIGS.parent)) for file in (CONFIGS / "projects").rglob("*.yaml")
        )
        raise ConfigError(f"--cfg-path {path}: no such file; {nearest(str(path), shipped)}")
    if not path.is_file():
        raise ConfigError(f"--cfg-path {path}: {no_file(path)}")
    files = _with_bases(path)
    project = stack(*files)
    modules = project.content.get("imports")
    if modules is not None:
        import_modules(
            check_imports(modules, project.places), lambda what: wrong(("imports",), project.places, what)
        )
    own = [*files, read_options(options, ProjectFile, project)]
    for key, what in (("base", "the file to start from"), ("imports", "modules to import")):
        if key in own[-1].content:
            raise ConfigError(f"{key} ({PLACE}): {what} can only stand in a project file")
    for layer in own:
        rename_processors(layer.part("preprocess"), "preprocess")
        for name in layer.part("datasets").names():
            rename_processors(layer.part("datasets", name), "datasets", name)
    return own


def _or_shipped(path: Path, folder: Path = Path()) -> Path:
    """Return a path as seen from a folder; `configs/…` is a shipped file where there is none of that name."""
    shipped = CONFIGS.joinpath(*path.parts[1:])
    taken = path.parts[:1] == ("configs",) and not (folder / path).exists() and shipped.exists()
    return shipped if taken else folder / path


def _with_bases(path: Path, above: tuple[Path, ...] = ()) -> list[Layer]:
    """A project file after the one that it names as its `base`, and that one's, and so on; the farthest first."""
    layer = read_layer(path)
    entries = layer.content.get("datasets")
    if isinstance(entries, dict):  # a bare name takes the dataset as it is
        layer.content["datasets"] = {name: {} if entry is None else entry for name, entry in entries.items()}
    base = layer.content.pop("base", None)
    if base is None:
        return [layer]
    if not isinstance(base, str):
        raise wrong(("base",), layer.places, f"wanted the path of a project file, not {shown(base)}")
    below = _or_shipped(user_path(base), path.parent)
    if below.resolve() in {file.resolve() for file in (*above, path)}:
        raise wrong(("base",), layer.places, f"{base} starts from this file itself; break the circle")
    if not below.is_file():
        raise wrong(("base",), layer.places, f"{below}: {no_file(below)}")
    return [*_with_bases(below, (*above, path)), layer]


def _interpolated(content: dict[str, Any], places: Places) -> dict[str, Any]:
    """As `interpolated`; in a path `${NAME}` may be a variable of the environment, and a text takes any value."""

    def variables(value: Any, keys: Keys) -> Any:
        if isinstance(value, dict):
            return {key: variables(item, (*keys, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [variables(item, keys) for item in value]
        if isinstance(value, str) and "${" in value and is_path(hint_of(Config, keys, content)):
            return VARIABLE.sub(lambda found: "\\" * (found[1] in os.environ) + found[0], value)
        return value

    def texts(value: Any, before: Any, keys: Keys) -> Any:
        if isinstance(value, dict):
            return {key: texts(item, before[key], (*keys, key)) for key, item in value.items()}
        if isinstance(before, str) and isinstance(value, int | float):
            takes_text = str in kinds_of(hint_of(Config, keys, content))[0]
            return str(value).lower() if takes_text else value
        return value

    try:
        prepared = variables(content, ())
    except RecursionError:
        prepared = content  # `interpolated` says so
    return texts(interpolated(prepared, places), content, ())


def _check_given(given: Layer, path: str | Path) -> None:
    """Keys have no typing errors, model and datasets are named."""
    entries = given.part("datasets")
    if entries.names():  # an option `datasets.NAME=null` takes one away
        given.content["datasets"] = {n: entry for n, entry in entries.content.items() if entry is not None}
    check_keys(ProjectFile, given.content, given.places)
    for key in ("arch", "model_type"):
        name = given.part("model").content.get(key)
        if not isinstance(name, str):
            found = "is missing" if name is None else f"wanted a text, not {shown(name)}"
            raise wrong(("model", key), given.places, f"{found}; name it in {path} or in --options")
    if not given.part("datasets").names():
        raise wrong(
            ("datasets",), given.places, f"name at least one in {path} or in --options, such as ucm_caption"
        )


def _says_all(layer: Layer, *keys: str) -> bool:
    """Whether a file needs no defaults, as a run's own or a printed one: there even an empty mapping is meant."""
    said = layer.part(*keys).content
    cls: type = DatasetConfig
    if keys == ("model",):
        arch = said.get("arch") if isinstance(said, dict) else None
        cls = (
            registry.models.config(arch) if isinstance(arch, str) and arch in registry.models else ArchConfig
        )
    return isinstance(said, dict) and {f.name for f in dataclasses.fields(cls)} <= said.keys()


def _schema_defaults(merged: Layer) -> Layer:
    """Return the defaults of every key that is not of a dataset, own keys of the parts that are named included."""
    kinds = (("model", ArchConfig), ("run", RunConfig), ("env", EnvConfig))
    return Layer(
        {name: defaults(cls, merged.content.get(name), merged.places, (name,)) for name, cls in kinds}
    )


def _model_defaults(given: Layer) -> Layer:
    """Return the YAML of the arch and model type that were asked for; archs of the user's own may have none."""
    arch, kind = given.content["model"]["arch"], expand(given.content["model"]["model_type"])
    if arch not in registry.models:
        raise unknown(("model", "arch"), registry.models.kind, arch, registry.models.names(), given.places)
    if kind.endswith((".yaml", ".yml")):
        return read_layer(Path(kind))
    known = registry.models.config(arch).model_types
    if known is None:
        return Layer()
    if kind not in known:
        raise unknown(("model", "model_type"), f"type of {arch}", kind, known, given.places)
    return merge(*(read_layer(CONFIGS / "models/bita" / file, shipped=True) for file in known[kind]))


def _dataset_defaults(given: Layer) -> dict[str, Layer]:
    """Return the entry of each dataset that was asked for, from the folders of dataset files.

    A dataset that is in none of them may be described in the project file itself, with its files and images.
    """
    folders: Any = given.part("env", "dataset_configs").content or []
    if not isinstance(folders, list):
        raise wrong(("env", "dataset_configs"), given.places, "wanted a list of folders")
    known = _read_datasets(CONFIGS / "datasets", {}, shipped=True)
    for folder in (user_path(str(folder)) for folder in folders):
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


def _processor_defaults(*preprocess: Layer) -> Layer:
    """Return what a dataset's processors take where its own entry says nothing; later ones win."""
    names = (Layer({"name": name}).under(*keys) for keys, name in DEFAULT_PROCESSORS.items())
    return stack(*(layer.under("preprocess") for layer in (*names, *preprocess))).part("preprocess")
