"""A dictionary into typed dataclasses: unknown keys, wrong types and wrong choices are one-line errors."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Hashable, Iterable, Iterator
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bita.config.layers import Keys, Places, where
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


def build(cls: type[T], value: Any, places: Places, keys: Keys = ()) -> T:
    """Make a dataclass of a dictionary, field by field.

    Args:
        cls: a dataclass; its type hints are the rules.
        value: nested dictionaries.
        places: key path → where it was written.
        keys: where the dictionary stands in the configuration.

    Raises:
        ConfigError: naming the key, its place, and what would be right.
    """
    check_keys(cls, value, places, keys)
    hints = _hints(cls)  # type: ignore[arg-type]
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in value:
            raise wrong((*keys, f.name), places, "is missing")
    return cls(**{key: _convert(hints[key], item, places, (*keys, key)) for key, item in value.items()})


def check_keys(cls: type, value: Any, places: Places, keys: Keys = ()) -> None:
    """Check the names of keys, and that mappings stand where they must; values are not looked at.

    Raises:
        ConfigError: an unknown key, or something else where a mapping is wanted.
    """
    hints = _hints(cls)
    if not isinstance(value, dict):
        raise wrong(keys, places, f"wanted keys such as {next(iter(hints))}, not {shown(value)}")
    for key, item in value.items():
        inner = (*keys, str(key))
        if key not in hints:
            raise _unknown_key(inner, hints, places)
        hint = hints[key]
        if item is None:
            continue
        if dataclasses.is_dataclass(hint):
            check_keys(hint, item, places, inner)  # type: ignore[arg-type]
        elif get_origin(hint) is dict and dataclasses.is_dataclass(get_args(hint)[1]):
            if not isinstance(item, dict):
                raise wrong(inner, places, f"wanted names with keys below them, not {shown(item)}")
            for name, entry in item.items():
                if entry is not None:
                    check_keys(get_args(hint)[1], entry, places, (*inner, str(name)))


def _convert(hint: Any, value: Any, places: Places, keys: Keys) -> Any:
    """Check a value against a type hint; whole numbers become floats where floats are wanted."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(arg for arg in args if arg is not type(None)), value, places, keys)
    if dataclasses.is_dataclass(hint):
        return build(hint, {} if value is None else value, places, keys)  # type: ignore[arg-type]
    if origin is Literal:
        if not isinstance(value, str) or value not in args:
            raise unknown(keys, "value", value, args, places)
        return value
    if origin is list:
        if not isinstance(value, list):
            raise wrong(keys, places, f"wanted a list such as [a, b], not {shown(value)}")
        return [_convert(args[0], item, places, keys) for item in value]
    if origin is dict:
        if value is not None and not isinstance(value, dict):
            raise wrong(keys, places, f"wanted keys with values, not {shown(value)}")
        return {str(k): _convert(args[1], item, places, (*keys, str(k))) for k, item in (value or {}).items()}
    return _scalar(hint, value, places, keys)


def _scalar(hint: type, value: Any, places: Places, keys: Keys) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        quotes = '; put it in quotes, "…"' if hint is str and isinstance(value, int | float) else ""
        raise wrong(keys, places, f"wanted {TYPE_NAMES[hint]}, not {shown(value)}{quotes}")
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong(keys, places, f"wanted a finite number, not {value}")
    return value


def wrong(keys: Keys, places: Places, what: str) -> ConfigError:
    """The one-line error for a key's value."""
    return ConfigError(f"{'.'.join(keys) or 'configuration'} ({where(keys, places)}): {what}")


def unknown(keys: Keys, kind: str, name: object, known: Iterable[str], places: Places) -> ConfigError:
    """The one-line error for a value that is none of some names, with the nearest of them."""
    known = sorted(known)
    return wrong(
        keys, places, f"unknown {kind} {str(name)!r}; {nearest(str(name), known)}, of {', '.join(known)}"
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """The name that is meant, as a question."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"did you mean {near[0]!r}?" if near else "there are none"


def _unknown_key(keys: Keys, hints: Iterable[str], places: Places) -> ConfigError:
    """The nearest key beside it; or one of the same name elsewhere, when none beside it is near."""
    *above, key = keys
    beside = difflib.get_close_matches(key, hints, n=1, cutoff=0.6)
    elsewhere = [path for path in _all_keys() if path[-1] == key]
    if elsewhere and not beside:
        near = ".".join(elsewhere[0])
    else:
        near = ".".join((*above, *(beside or difflib.get_close_matches(key, hints, n=1, cutoff=0.0))))
    return wrong(keys, places, f"unknown key; did you mean {near!r}?")


@cache
def _all_keys() -> tuple[Keys, ...]:
    from bita.config.schema import Config

    def walk(cls: type, keys: Keys) -> Iterator[Keys]:
        for key, hint in _hints(cls).items():
            yield (*keys, key)
            inner = hint if dataclasses.is_dataclass(hint) else None
            if inner is not None:
                yield from walk(inner, (*keys, key))  # type: ignore[arg-type]

    return tuple(walk(Config, ()))


def shown(value: Any) -> str:
    """A value in a message: what it is and, when short, how it is written."""
    kind = TYPE_NAMES.get(type(value), type(value).__name__)
    if isinstance(value, dict | list) or value is None:
        return kind
    written = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{kind}, {written if len(written) <= 60 else written[:57] + '…'}"


@cache
def _hints(cls: Hashable) -> dict[str, Any]:
    return get_type_hints(cls)
