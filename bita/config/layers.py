"""YAML files and `--options` as layers that know where each key stands, merged into one dictionary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bita.errors import ConfigError

Keys = tuple[str, ...]
Places = dict[Keys, str]
"""Key path → where it stands, as "file:line" or "--options"."""

OPTIONS = "--options"
_FLOAT, _DATE = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"
_EXPONENT = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.[\d_]+)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-5 as a number, as YAML 1.2 does, and a date as text."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: a text such as "1e-5" gets quotes."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag != _DATE]
        for first, rules in _kind.yaml_implicit_resolvers.items()
    }


@dataclass
class Layer:
    """One source of keys.

    Attributes:
        content: nested dictionaries.
        places: where each key stands.
        shipped: whether it is one of our defaults rather than the user's own.
        is_option: whether it came from `--options`; there `key=null` replaces even a mapping.
    """

    content: dict[str, Any] = field(default_factory=dict)
    places: Places = field(default_factory=dict)
    shipped: bool = False
    is_option: bool = False

    def part(self, *keys: str) -> Layer:
        """The layer below some keys, or an empty one."""
        content: Any = self.content
        for key in keys:
            content = content.get(key) if isinstance(content, dict) else None
        places = {
            path[len(keys) :]: place for path, place in self.places.items() if path[: len(keys)] == keys
        }
        return Layer({} if content is None else content, places, self.shipped, self.is_option)

    def names(self) -> list[str]:
        """The keys at its top; none when it is no mapping."""
        return list(self.content) if isinstance(self.content, dict) else []

    def under(self, *keys: str) -> Layer:
        """The same layer, put below some keys."""
        content: Any = self.content
        for key in reversed(keys):
            content = {key: content}
        places = {(*keys, *path): place for path, place in self.places.items()}
        return Layer(content, places, self.shipped, self.is_option)


def read_layer(path: Path, *, shipped: bool = False) -> Layer:
    """Read a YAML file.

    Raises:
        ConfigError: it is missing, is not YAML, has a tag that would run code, or a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"configuration {path}: cannot be read ({reason})") from error
    layer = Layer(shipped=shipped)
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return layer
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"configuration {path}: wanted keys such as model, datasets, run")
        _note_places(root, (), path, layer.places)
        layer.content = loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"configuration {path}{line}: not plain YAML ({reason})") from error
    except RecursionError as error:
        raise ConfigError(
            f"configuration {path}: an anchor (&) contains itself, or it is nested too deep"
        ) from error
    return layer


def read_options(options: Sequence[str]) -> list[Layer]:
    """Read `key=value` pairs: dotted keys, values as in YAML; one layer each.

    Raises:
        ConfigError: a pair has no `=`, or its value is not YAML.
    """
    layers = []
    for option in options:
        name, equals, text = option.partition("=")
        keys = tuple(name.split("."))
        if not equals or not all(keys):
            raise ConfigError(f"{OPTIONS}: {option!r} is not of the form key=value, such as run.max_epoch=1")
        try:
            value = _Loader(text).get_single_data()
        except (yaml.YAMLError, RecursionError) as error:
            reason = getattr(error, "problem", None) or "nested too deep"
            raise ConfigError(
                f"{OPTIONS}: the value of {name} is not plain YAML ({reason}): {text!r}"
            ) from error
        places = dict.fromkeys(_paths(value), OPTIONS)
        layer = Layer(value, places, is_option=True).under(*keys)
        layer.places |= {keys[:depth]: OPTIONS for depth in range(1, len(keys))}
        layers.append(layer)
    return layers


def to_yaml(content: dict[str, Any]) -> str:
    """Text that `read_layer` reads as the same content; nothing in it is interpolated."""
    text: str = yaml.dump(_escaped(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text


def merge(*layers: Layer) -> Layer:
    """Later layers win, key by key; lists are replaced whole.

    An empty key of a file leaves the mapping below it as it was. `datasets: [a, b]` chooses exactly these, with
    what earlier layers say of them.
    """
    result = Layer()
    for layer in layers:
        content = dict(layer.content)
        chosen = content.get("datasets")
        if isinstance(chosen, list) and all(isinstance(name, str) for name in chosen):
            before = result.content.get("datasets") or {}
            result.content["datasets"] = {name: before.get(name) or {} for name in chosen}
            del content["datasets"]
        result.content = _merged(result.content, content, layer.is_option)
        result.places |= layer.places
    return result


def interpolated(content: dict[str, Any], places: Places) -> dict[str, Any]:
    """Resolve `${run.output_dir}` and its like.

    Raises:
        ConfigError: what is referred to does not exist.
    """
    try:
        made = OmegaConf.to_container(OmegaConf.create(content), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "")
        reason = str(error.msg or error).splitlines()[0]
        raise ConfigError(
            f"{key or 'configuration'} ({where(tuple(key.split('.')), places)}): {reason}"
        ) from error
    except RecursionError as error:
        raise ConfigError("configuration: an anchor (&) contains itself, or it is nested too deep") from error
    assert isinstance(made, dict)
    return {str(key): value for key, value in made.items()}


def where(keys: Keys, places: Places) -> str:
    """Where a key was written, or the nearest one above it."""
    for depth in range(len(keys), 0, -1):
        if keys[:depth] in places:
            return places[keys[:depth]]
    return places.get((), "defaults")


def _merged(old: Any, new: Any, is_option: bool) -> Any:
    if isinstance(old, dict) and new is None and not is_option:
        return old
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merged(old.get(key), value, is_option) for key, value in new.items()}


def _note_places(node: yaml.Node, keys: Keys, path: Path, places: Places) -> None:
    """Where every key of a parsed document stands.

    Raises:
        ConfigError: a key stands twice.
    """
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in seen:
            raise ConfigError(
                f"{'.'.join((*keys, key))} ({path}:{line}): stands in line {seen[key]} too; keep one"
            )
        seen[key] = line
        places[(*keys, key)] = f"{path}:{line}"
        _note_places(value_node, (*keys, key), path, places)


def _paths(value: Any) -> list[Keys]:
    inner = value.items() if isinstance(value, dict) else ()
    return [(), *((str(key), *path) for key, item in inner for path in _paths(item))]


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("${", r"\${") if isinstance(value, str) else value
