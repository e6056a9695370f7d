"""A dictionary into typed dataclasses: unknown keys, wrong types and wrong choices are one-line errors."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bita.config_layers import Keys
from bita.errors import ConfigError

T = TypeVar("T")

TYPE_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "keys with values",
    type(None): "null",
}


def build(cls: type[T], value: Any, keys: Keys, places: dict[Keys, str]) -> T:
    """Make a dataclass of a dictionary, field by field.

    Args:
        cls: a dataclass; its type hints are the rules.
        value: nested dictionaries.
        keys: where the dictionary stands in the configuration.
        places: full key path → where it was written.

    Raises:
        ConfigError: naming the key, its place, and what would be right.
    """
    if not isinstance(value, dict):
        raise wrong(keys, places, f"wanted keys such as {next(iter(_fields(cls)))}, not {shown(value)}")
    hints = _fields(cls)
    for key in value:
        if key not in hints:
            raise unknown(
                f"{'.'.join((*keys, str(key)))}", "key", str(key), hints, where((*keys, str(key)), places)
            )
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise wrong(keys, places, f"{name} is missing")
    return cls(**{key: convert(hints[key], item, (*keys, key), places) for key, item in value.items()})


def convert(hint: Any, value: Any, keys: Keys, places: dict[Keys, str]) -> Any:
    """Check a value against a type hint; whole numbers become floats where floats are wanted.

    Raises:
        ConfigError: it does not fit.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return convert(next(arg for arg in args if arg is not type(None)), value, keys, places)
    if dataclasses.is_dataclass(hint):
        return build(hint, {} if value is None else value, keys, places)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in args:
            raise unknown(".".join(keys), "value", str(value), [str(a) for a in args], where(keys, places))
        return value
    if origin is list:
        if not isinstance(value, list):
            raise wrong(keys, places, f"wanted a list such as [train], not {shown(value)}")
        return [convert(args[0], item, keys, places) for item in value]
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong(keys, places, f"wanted keys with values, not {shown(value)}")
        return {str(k): convert(args[1], item, (*keys, str(k)), places) for k, item in value.items()}
    return _scalar(hint, value, keys, places)


def _scalar(hint: type, value: Any, keys: Keys, places: dict[Keys, str]) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise wrong(keys, places, f"wanted {TYPE_NAMES[hint]}, not {shown(value)}")


def where(keys: Keys, places: dict[Keys, str]) -> str:
    """Where a key was written, or the nearest one above it."""
    for depth in range(len(keys), 0, -1):
        if keys[:depth] in places:
            return places[keys[:depth]]
    return "configuration"


def wrong(keys: Keys, places: dict[Keys, str], what: str) -> ConfigError:
    """The one-line error for a key's value."""
    return ConfigError(f"{'.'.join(keys)} ({where(keys, places)}): {what}")


def unknown(path: str, kind: str, name: str, known: Iterable[str], place: str) -> ConfigError:
    """The one-line error for a name that does not exist, with the nearest one that does."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
    subject = f"unknown key {path!r}" if kind == "key" else f"{path}: unknown {kind} {name!r}"
    return ConfigError(f"{subject} ({place}): {hint}")


def shown(value: Any) -> str:
    """A value in a message: what it is and, when short, how it is written."""
    kind = TYPE_NAMES.get(type(value), type(value).__name__)
    return kind if isinstance(value, dict | list) or value is None else f"{kind}: {str(value)[:60]!r}"


def _fields(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)
