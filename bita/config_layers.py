"""YAML files and `--options` as layers that know where each key stands, merged into one dictionary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bita.errors import ConfigError

Keys = tuple[str, ...]

OPTIONS = "--options"


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-5 as a number, as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*)(\.[0-9_]*)?[eE][-+]?[0-9]+$|^[-+]?\.[0-9]+([eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


@dataclass
class Layer:
    """One source of keys.

    Attributes:
        content: nested dictionaries.
        places: key path → where it stands, as "file:line" or "--options".
        shipped: whether it is a default rather than the user's own.
    """

    content: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, str] = field(default_factory=dict)
    shipped: bool = False

    def part(self, *keys: str) -> Layer:
        """The layer below some keys, or an empty one."""
        content: Any = self.content
        for key in keys:
            content = content.get(key) if isinstance(content, dict) else None
        return Layer({} if content is None else content, below(self.places, keys), self.shipped)

    def under(self, *keys: str) -> Layer:
        """The same layer, put below some keys."""
        content: Any = self.content
        for key in reversed(keys):
            content = {key: content}
        return Layer(content, {(*keys, *path): place for path, place in self.places.items()}, self.shipped)


def below(places: dict[Keys, str], keys: Keys) -> dict[Keys, str]:
    """The places of what stands below some keys."""
    return {path[len(keys) :]: place for path, place in places.items() if path[: len(keys)] == keys}


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
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        content = None if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(
            f"configuration {path}{line}: not plain YAML ({getattr(error, 'problem', error)})"
        ) from error
    finally:
        loader.dispose()
    if root is not None:
        _note_places(root, (), path, layer.places)
    if content is not None and not isinstance(content, dict):
        raise ConfigError(
            f"configuration {path}: wanted keys like model, datasets, run; found {_kind(content)}"
        )
    layer.content = content or {}
    return layer


def read_options(options: Sequence[str]) -> Layer:
    """Read `key=value` pairs: dotted keys, values as in YAML.

    Raises:
        ConfigError: a pair has no `=`, or its value is not YAML.
    """
    layer = Layer()
    for option in options:
        name, equals, text = option.partition("=")
        keys = tuple(name.split("."))
        if not equals or not all(keys):
            raise ConfigError(f"{OPTIONS}: {option!r} is not of the form key=value, such as run.max_epoch=1")
        loader = _Loader(text)
        try:
            value = loader.get_single_data()
        except yaml.YAMLError as error:
            raise ConfigError(f"{OPTIONS}: the value of {name} is not YAML: {text!r}") from error
        finally:
            loader.dispose()
        place = dict.fromkeys(_paths(value, keys), OPTIONS)
        place |= {keys[:depth]: OPTIONS for depth in range(1, len(keys))}
        for key in reversed(keys):
            value = {key: value}
        layer = merge(layer, Layer(value, place))
    return layer


def merge(*layers: Layer) -> Layer:
    """Later layers win, key by key; lists are replaced whole."""
    result = Layer()
    for layer in layers:
        result.content = _merged(result.content, layer.content)
        result.places |= layer.places
    return result


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}


def _note_places(node: yaml.Node, keys: Keys, path: Path, places: dict[Keys, str]) -> None:
    """Where every key of a parsed document stands."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in seen:
            raise ConfigError(
                f"{'.'.join((*keys, key))}: stands twice in {path}, the second time in line {line}"
            )
        seen.add(key)
        places[(*keys, key)] = f"{path}:{line}"
        _note_places(value_node, (*keys, key), path, places)


def _paths(value: Any, keys: Keys) -> list[Keys]:
    inner = value.items() if isinstance(value, dict) else ()
    return [keys, *(path for key, item in inner for path in _paths(item, (*keys, str(key))))]


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text"}.get(type(value), type(value).__name__)
