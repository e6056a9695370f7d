"""YAML files and `--options` as layers that know where each key stands, merged into one dictionary."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
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

ANY = "*"
"""In a pattern of keys: any one of them."""

_INT, _FLOAT, _TEXT = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "str"))
_NUMBERS = {
    _INT: re.compile(r"[-+]?(0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)$"),
    _FLOAT: re.compile(
        r"([-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
}
_LEFT_OUT = {f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "binary", "omap", "pairs", "set")}
_DIGITS = "-+.0123456789"


class PlainLoader(yaml.SafeLoader):
    """Safe YAML with the numbers of YAML 1.2: 1e-5 is one, 010 is ten, 1:30 and a date are text; keys are text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a dictionary whose keys are what the file says, 007 included."""
        self.flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = _TEXT
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Decimal, whatever zeros stand in front, unless 0o or 0x do."""
        digits = str(node.value).replace("_", "")
        try:
            return int(digits, {"0o": 8, "0x": 16}.get(digits.lstrip("+-")[:2], 10))
        except ValueError as error:
            raise yaml.YAMLError("a number of too many digits") from error


class _Dumper(yaml.SafeDumper):
    """Writes what `PlainLoader`, or any other reader of YAML, reads as the same: a text such as "1e-5" gets quotes."""


def _written(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """Quoted with escapes where a letter could be taken for the end of a line."""
    return dumper.represent_scalar(_TEXT, text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _written)
PlainLoader.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag not in _LEFT_OUT
} | {_INT: PlainLoader.construct_yaml_int}
PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag not in {*_NUMBERS, *_LEFT_OUT}]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in (PlainLoader, _Dumper):
    for _tag, _pattern in _NUMBERS.items():
        _kind.add_implicit_resolver(_tag, _pattern, list(_DIGITS))


@dataclass
class Layer:
    """One source of keys.

    Attributes:
        content: nested dictionaries.
        places: where each key stands.
        shipped: whether it is one of our defaults rather than the user's own.
        replaces: keys of which layers below say nothing any more, though a mapping stands there.
        chosen: the datasets that it wants, and no other, in their order.
    """

    content: dict[str, Any] = field(default_factory=dict)
    places: Places = field(default_factory=dict)
    shipped: bool = False
    replaces: frozenset[Keys] = frozenset()
    chosen: list[str] | None = None

    def part(self, *keys: str) -> Layer:
        """Return the layer below some keys, or an empty one."""
        content: Any = self.content
        for key in keys:
            content = content.get(key) if isinstance(content, dict) else None
        depth = len(keys)
        places = {path[depth:]: place for path, place in self.places.items() if path[:depth] == keys}
        replaces = frozenset(path[depth:] for path in self.replaces if path[:depth] == keys)
        return Layer({} if content is None else content, places, self.shipped, replaces)

    def names(self) -> list[str]:
        """Return the keys at its top; none when it is no mapping."""
        return list(self.content) if isinstance(self.content, dict) else []

    def under(self, *keys: str) -> Layer:
        """Return the same layer, put below some keys."""
        content: Any = self.content
        for key in reversed(keys):
            content = {key: content}
        places = {(*keys, *path): place for path, place in self.places.items()}
        return Layer(content, places, self.shipped, frozenset((*keys, *path) for path in self.replaces))


def read_layer(path: Path, *, shipped: bool = False) -> Layer:
    """Read a YAML file.

    Raises:
        ConfigError: it is missing, is not YAML, has a tag that would run code, or a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigError(f"configuration {path}: cannot be read ({reason})") from error
    layer = Layer(shipped=shipped)
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    try:
        loader = PlainLoader(text)
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


def to_yaml(content: dict[str, Any]) -> str:
    """Text that `read_layer` reads as the same content; nothing in it is interpolated."""
    text: str = yaml.dump(
        _escaped(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf
    )
    return text


def merge(*layers: Layer) -> Layer:
    """Later layers win, key by key; lists are replaced whole.

    An empty key of a file leaves the mapping below it as it was. `datasets: [a, b]` chooses exactly these, with
    what earlier layers say of them.

    Raises:
        ConfigError: a dataset is chosen twice.
    """
    result = Layer()
    for layer in layers:
        content = dict(layer.content)
        names, chosen = content.get("datasets"), layer.chosen
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ConfigError(
                    f"datasets ({where(('datasets',), layer.places)}): names {min(twice)} twice; keep one"
                )
            chosen = names
            del content["datasets"]
        if chosen is not None:
            before = result.content.get("datasets") or {}
            result.content["datasets"] = {name: before.get(name) or {} for name in chosen}
            result.chosen = chosen
        for keys in layer.replaces:
            _take_out(result.content, keys)
            result.places = {at: place for at, place in result.places.items() if at[: len(keys)] != keys}
        result.content = _merged(result.content, content)
        result.places |= layer.places
        result.replaces |= layer.replaces
    return result


def interpolated(content: dict[str, Any], places: Places) -> dict[str, Any]:
    """Resolve `${run.output_dir}` and its like.

    Raises:
        ConfigError: what is referred to does not exist.
    """
    try:
        made = OmegaConf.to_container(OmegaConf.create(content), resolve=True)
    except OmegaConfBaseException as error:
        key, reason = str(error.full_key or ""), str(error.msg or error).splitlines()[0]
        absent = re.search("Interpolation key '(.*)' not found", reason)
        if absent:  # named where it stands, not by a key that takes up the one where it does
            reason = (
                f"${{{absent[1]}}} is no other key, nor, in a path, a variable of the environment that is set"
            )
            key = next((found for found, text in _texts(content) if f"${{{absent[1]}}}" in text), key)
        raise ConfigError(
            f"{key or 'configuration'} ({where(tuple(key.split('.')), places)}): {reason}; "
            r"write \${ for these two characters themselves"
        ) from error
    except RecursionError as error:
        raise ConfigError("configuration: an anchor (&) contains itself, or it is nested too deep") from error
    assert isinstance(made, dict)
    return made  # type: ignore[return-value]


def _texts(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every text in nested dictionaries and lists."""
    if isinstance(content, str):
        yield key, content
    elif isinstance(content, list):
        for item in content:
            yield from _texts(item, key)
    elif isinstance(content, dict):
        for name, item in content.items():
            yield from _texts(item, f"{key}.{name}" if key else str(name))


def where(keys: Keys, places: Places) -> str:
    """Return where a key was written, or the nearest one above it."""
    for depth in range(len(keys), 0, -1):
        if keys[:depth] in places:
            return places[keys[:depth]]
    return places.get((), "defaults")


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and new is None:
        return old
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}


def matches(content: Any, pattern: Keys, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """(keys, value) of all that stands under a pattern, in which `ANY` is any key."""
    if not pattern:
        yield keys, content
    elif isinstance(content, dict):
        for key in content if pattern[0] == ANY else [pattern[0]]:
            if key in content:
                yield from matches(content[key], pattern[1:], (*keys, str(key)))


def _take_out(content: dict[str, Any], keys: Keys) -> None:
    """Remove what stands under some keys; dictionaries on the way are copied, since layers share them."""
    for key in keys[:-1]:
        if not isinstance(content.get(key), dict):
            return
        content[key] = dict(content[key])
        content = content[key]
    content.pop(keys[-1], None)


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


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
