"""`--options key=value …`: what is typed is what is taken, by the declared type of its key.

A text takes what stands behind the `=` as it is: `run.name=007`, `model.prompt=class #1 of`, `yes`, `1e5`, `~`. Quotes
round all of it are taken off, as YAML does. Where a key may be empty, `null` or nothing empties it. Lists, mappings,
numbers and switches are YAML, in which `#` starts no comment and a text inside is taken as typed, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

import yaml

from bita.config.hints import hint_of, kinds_of
from bita.config.keys import REPLACED
from bita.config.layers import Keys, Layer, PlainLoader, merge
from bita.errors import ConfigError

PLACE = "--options"
TEXT, NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


def read_options(options: Sequence[str], schema: type, below: Layer, *, place: str = PLACE) -> Layer:
    """Read `key=value` pairs with dotted keys; later ones win.

    Args:
        options: as typed.
        schema: the dataclass whose type hints say what a key takes.
        below: the layer that they are put on; it and they name the parts whose own keys are meant.
        place: where they were typed, for messages.

    Raises:
        ConfigError: a pair has no `=`, or its value is not YAML where it should be.
    """
    layers = []
    known = merge(below, *(_as_typed(option) for option in options)).content
    for option in options:
        name, equals, text = option.partition("=")
        keys = tuple(name.split("."))
        if not equals or not all(keys):
            raise ConfigError(f"{place}: {option!r} is not of the form key=value, such as run.max_epoch=1")
        hint = hint_of(schema, keys, known)
        try:
            value = _value(text, hint)
        except (yaml.YAMLError, RecursionError) as error:
            reason = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise ConfigError(
                f"{place}: the value of {name} is not plain YAML ({reason}): {text!r}"
            ) from error
        layer = Layer(value, dict.fromkeys(_paths(value), place)).under(*keys)
        layer.places |= {keys[:depth]: place for depth in range(1, len(keys))}
        layer.replaces = frozenset(_replaced(value, hint, keys))
        layers.append(layer)
    return merge(*layers)


def _as_typed(option: str) -> Layer:
    """Return a pair whose value may name a part."""
    name, _, text = option.partition("=")
    keys = name.split(".")
    return Layer(text).under(*keys) if all(keys) and text[:1] not in ("{", "[", "") else Layer()  # type: ignore[arg-type]


def _value(text: str, hint: Any) -> Any:
    """Return what was typed, as the type that is declared."""
    kinds, _ = kinds_of(hint)
    if not any(map(_is_text, kinds)) or (text.startswith("[") and any(get_origin(k) is list for k in kinds)):
        return _yaml(text, hint)
    if type(None) in kinds and text in ("", "null"):
        return None
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if quoted:
        try:
            value = _yaml(text, Any)
        except yaml.YAMLError:  # quotes inside: 'a' or 'b'
            return text
        return value if isinstance(value, str) else text
    return text


def _is_text(kind: Any) -> bool:
    return kind is str or get_origin(kind) is Literal


def _yaml(text: str, hint: Any) -> Any:
    """Return a value in YAML without comments."""
    mark = next(letter for letter in map(chr, range(0xE000, 0xF8FF)) if letter not in text)
    loader = PlainLoader(text.replace("#", mark))
    root = loader.get_single_node()
    if root is None:
        return None
    _prepare(root, hint, mark, set())
    return loader.construct_document(root)


def _prepare(node: yaml.Node, hint: Any, mark: str, seen: set[int]) -> None:
    """Put `#` back, and let texts be texts."""
    if id(node) in seen:
        return
    seen.add(id(node))
    kinds, _ = kinds_of(hint)
    if isinstance(node, yaml.ScalarNode):
        node.value = node.value.replace(mark, "#")
        empty = node.tag == NULL and type(None) in kinds
        if any(map(_is_text, kinds)) and node.style is None and not empty:
            node.tag = TEXT
    elif isinstance(node, yaml.SequenceNode):
        inner = next((get_args(kind)[0] for kind in kinds if get_origin(kind) is list), None)
        if any(get_origin(kind) is dict for kind in kinds):  # datasets=[a, b]
            inner = str
        for item in node.value:
            _prepare(item, Any if inner is None else inner, mark, seen)
    elif isinstance(node, yaml.MappingNode):
        named = {str(key.value): item.value for key, item in node.value}
        if len(named) < len(node.value):
            raise yaml.MarkedYAMLError(problem="a key stands twice")
        for key, item in node.value:
            _prepare(key, Any, mark, seen)
            _prepare(item, hint_of(hint, (str(key.value),), named), mark, seen)


def _replaced(value: Any, hint: Any, keys: Keys) -> Iterator[Keys]:
    """Keys of which nothing below is kept: those that are emptied, and mappings that are marked so."""
    _, marks = kinds_of(hint)
    if value is None or (isinstance(value, dict) and REPLACED in marks):
        yield keys
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _replaced(item, hint_of(hint, (key,), value), (*keys, key))


def _paths(value: Any) -> list[Keys]:
    inner = value.items() if isinstance(value, dict) else ()
    return [(), *((key, *path) for key, item in inner for path in _paths(item))]
