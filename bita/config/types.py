"""A dictionary into typed dataclasses: unknown keys, wrong types and wrong choices are one-line errors."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
import operator
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from bita.config.hints import hints_of, is_chosen, is_path
from bita.config.keys import PATH, fields_of
from bita.config.layers import Keys, Places, where
from bita.errors import ConfigError
from bita.files import expand, in_utf8
from bita.registry import FREE, Registry, nearest

LOG = logging.getLogger(__name__)
T = TypeVar("T")

RANGES = {"at_least": operator.ge, "above": operator.gt, "below": operator.lt, "at_most": operator.le}

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
        cls: a dataclass; its type hints and the ranges beside them are the rules. Where it is what the parts of a
            registry share (`WithParts.chosen_by`), the `Config` of the part that is named is made.
        value: nested dictionaries.
        places: key path → where it was written.
        keys: where the dictionary stands in the configuration.

    Raises:
        ConfigError: naming the key, its place, and what would be right.
    """
    cls = _chosen(cls, value, places, keys)
    value = _without_others(cls, value, places, keys)
    check_keys(cls, value, places, keys)
    made: dict[str, Any] = {}
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        inner = (*keys, f.name)
        if f.name not in value:
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise wrong(inner, places, "is missing")
            continue
        item = value[f.name]
        if "keys_of" in f.metadata:
            made[f.name] = _own_keys(own_keys(cls, f, value), item, places, inner)
        elif "own_keys" in f.metadata:
            made[f.name] = _own_keys_by_name(f.metadata["registry"], item, places, inner)
        else:
            made[f.name] = _convert(hints_of(cls)[f.name], item, places, inner)
            _check_range(f.metadata, made[f.name], places, inner)
            if "registry" in f.metadata:
                _check_names(f.metadata["registry"], made[f.name], places, inner)
    result = cls(**made)
    for name, problem in result.faults() if hasattr(result, "faults") else ():
        raise wrong((*keys, *name.split(".")), places, problem)
    return result


def check_value(cls: type, name: str, value: Any, place: str) -> None:
    """Raise ConfigError where a value, given at a place other than a file, is none that a key of a dataclass takes."""
    keys: Keys = (name,)
    places: Places = {(): place}
    value = _convert(hints_of(cls)[name], value.item() if hasattr(value, "item") else value, places, keys)
    _check_range(fields_of(cls)[name].metadata, value, places, keys)


def defaults(cls: type[Any], given: Any, places: Places, keys: Keys = ()) -> dict[str, Any]:
    """Return the defaults of a dataclass and of all that stand below it, as plain dictionaries.

    Args:
        cls: as for `build`.
        given: names the parts whose own keys' defaults are wanted, where they are not the default ones.
        places: where these names were written.
        keys: where `given` stands in the configuration.

    Raises:
        ConfigError: there is no part of a name.
    """
    given = given if isinstance(given, dict) else {}
    cls = _chosen(cls, given, places, keys)
    found: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        below, inner = given.get(f.name), (*keys, f.name)
        if f.name in given and hints_of(cls)[f.name] is str and "registry" in f.metadata:
            _scalar(str, below, places, inner)
            _check_names(f.metadata["registry"], below, places, inner)
        config = own_keys(cls, f, given) if "keys_of" in f.metadata else hints_of(cls)[f.name]
        if config is FREE:
            found[f.name] = {}
        elif dataclasses.is_dataclass(config):
            found[f.name] = defaults(config, below, places, inner)
        elif f.default_factory is not dataclasses.MISSING:
            found[f.name] = f.default_factory()
        elif f.default is not dataclasses.MISSING:
            found[f.name] = f.default
    return found


def own_keys(cls: type, f: dataclasses.Field[Any], given: dict[str, Any]) -> type[Any]:
    """Return the dataclass, or `FREE`, of the keys in field `f`: of the part that the key beside it names."""
    name_field = fields_of(cls)[f.metadata["keys_of"]]
    config: type[Any] = name_field.metadata["registry"].config(given.get(name_field.name, name_field.default))
    return config


def check_keys(cls: type, value: Any, places: Places, keys: Keys = (), *, names_too: bool = True) -> None:
    """Check the names of keys, and that mappings stand where they must; values are not looked at.

    Own keys of parts are not looked at either, since what names the part may stand in another layer.

    Raises:
        ConfigError: an unknown key, or something else where a mapping is wanted.
    """
    hints = hints_of(cls)
    if not isinstance(value, dict):
        example = f"keys such as {next(iter(hints))}" if hints else "no keys, since there are none here"
        raise wrong(keys, places, f"wanted {example}, not {shown(value)}")
    for key, item in value.items() if names_too else ():
        inner = (*keys, str(key))
        if key not in hints:
            raise _unknown_key(inner, hints, places)
        hint = hints[key]
        if item is None:
            continue
        if dataclasses.is_dataclass(hint):
            check_keys(hint, item, places, inner, names_too=not is_chosen(hint))  # type: ignore[arg-type]
        elif get_origin(hint) is dict and dataclasses.is_dataclass(get_args(hint)[1]):
            if not isinstance(item, dict):
                raise wrong(inner, places, f"wanted names with keys below them, not {shown(item)}")
            for name, entry in item.items():
                if entry is not None:
                    below = get_args(hint)[1]
                    check_keys(below, entry, places, (*inner, str(name)), names_too=not is_chosen(below))


def _chosen(cls: type[T], value: Any, places: Places, keys: Keys) -> type[T]:
    """Return the `Config` of the part that a dictionary names; the class itself where there is nothing to choose."""
    if not is_chosen(cls) or not isinstance(value, dict):
        return cls
    registry, name_key = cls.chosen_by  # type: ignore[attr-defined]
    name = value.get(name_key, fields_of(cls)[name_key].default)
    if name is dataclasses.MISSING or name is None:
        raise wrong((*keys, name_key), places, "is missing")
    _scalar(str, name, places, (*keys, name_key))
    _check_names(registry, name, places, (*keys, name_key))
    chosen: type[T] = registry.config(name)
    return chosen


def _without_others(cls: type, value: Any, places: Places, keys: Keys) -> Any:
    """Without keys of other parts of the same registry: published files have some, recorded ones as null."""
    if not is_chosen(cls) or not isinstance(value, dict):
        return value
    registry, name_key = cls.chosen_by  # type: ignore[attr-defined]
    strange = value.keys() - hints_of(cls).keys()
    if not strange:
        return value
    others = {key for name in registry for key in hints_of(registry.config(name))}
    for key in sorted(strange & others):
        if value[key] is not None:
            LOG.warning("%s", wrong((*keys, key), places, f"has no effect on {value[name_key]}"))
    return {key: item for key, item in value.items() if key not in strange & others}


def _own_keys(config: type[Any], value: Any, places: Places, keys: Keys) -> Any:
    """Return a part's own keys; those of another library as they are."""
    if config is FREE:
        return _convert(dict[str, Any], value, places, keys)
    return build(config, {} if value is None else value, places, keys)


def _own_keys_by_name(registry: Registry, value: Any, places: Places, keys: Keys) -> dict[str, Any]:
    """Names of parts, each with its own keys."""
    if value is not None and not isinstance(value, dict):
        example = f"{{{next(iter(registry), 'name')}: {{}}}}"
        raise wrong(keys, places, f"wanted names with their keys, such as {example}, not {shown(value)}")
    _check_names(registry, value, places, keys)
    return {
        name: _own_keys(registry.config(name), below, places, (*keys, name))
        for name, below in (value or {}).items()
    }


def _check_names(registry: Registry, names: Any, places: Places, keys: Keys) -> None:
    """Raise ConfigError where a name, one of a list, or a key of a mapping, is none of a registry."""
    for name in [names] if isinstance(names, str) else names or ():
        if name not in registry:
            at = (*keys, str(name)) if isinstance(names, dict) else keys
            raise unknown(at, registry.kind, name, registry.names(), places)


def _check_range(limits: Mapping[str, Any], value: Any, places: Places, keys: Keys) -> None:
    """Raise ConfigError where a number, or one in a list or mapping, is outside the range of its key."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_range(limits, item, places, (*keys, name))
    elif isinstance(value, list):
        for item in value:
            _check_range(limits, item, places, keys)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        for name, fits in RANGES.items():
            if name in limits and not fits(value, limits[name]):
                limit = limits[name] if isinstance(limits[name], int) else f"{limits[name]:g}"
                raise wrong(keys, places, f"must be {name.replace('_', ' ')} {limit}, not {value}")


def _convert(hint: Any, value: Any, places: Places, keys: Keys) -> Any:
    """Check a value against a type hint; whole numbers become floats where floats are wanted."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        if PATH in args[1:]:
            return _path(_scalar(args[0], value, places, keys), places, keys)
        return _convert(args[0], value, places, keys)
    if origin in (Union, types.UnionType):
        if type(None) in args and (value is None or (value == "" and is_path(hint))):
            return None
        kinds = [arg for arg in args if arg is not type(None)]
        fitting = (kind for kind in kinds if (get_origin(kind) is list) == isinstance(value, list))
        return _convert(next(fitting, kinds[0]), value, places, keys)
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
    value = _scalar(hint, value, places, keys)
    if isinstance(value, str) and not in_utf8(value):
        raise wrong(keys, places, f"{value!r} holds half of a character, or bytes that are not UTF-8")
    return value


def _path(value: str, places: Places, keys: Keys) -> str:
    """A path as it is meant on this machine; one with a variable that is not set is taken as it stands, and said."""
    if not value:
        raise wrong(keys, places, "is empty; name a path, such as . for the current folder")
    found = expand(value)
    unset = re.search(r"\$\w+|\$\{\w+\}", found) if "://" not in found else None
    if unset:
        LOG.warning(
            "%s",
            wrong(keys, places, f"{unset[0]} is no variable of the environment, so it is part of the name"),
        )
    return found


def _scalar(hint: type, value: Any, places: Places, keys: Keys) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < sys.float_info.max else math.inf
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        quotes = '; put it in quotes, "…"' if hint is str and isinstance(value, int | float) else ""
        raise wrong(keys, places, f"wanted {TYPE_NAMES[hint]}, not {shown(value)}{quotes}")
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong(keys, places, f"wanted a finite number, not {value}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise wrong(keys, places, f"wanted a whole number of at most 64 bits, not {value}")
    if isinstance(value, str) and "\0" in value:
        raise wrong(keys, places, "holds a zero byte, which no name or caption has")
    return value


def wrong(keys: Keys, places: Places, what: str) -> ConfigError:
    """Return the one-line error for a key's value."""
    return ConfigError(f"{'.'.join(keys) or 'configuration'} ({where(keys, places)}): {what}")


def unknown(keys: Keys, kind: str, name: object, known: Iterable[str], places: Places) -> ConfigError:
    """Return the one-line error for a value that is none of some names, with the nearest of them."""
    known = sorted(known)
    return wrong(
        keys, places, f"unknown {kind} {str(name)!r}; {nearest(str(name), known)}, of {', '.join(known)}"
    )


def _unknown_key(keys: Keys, hints: Iterable[str], places: Places) -> ConfigError:
    """Return the nearest key beside it; or one of that name, or nearly, elsewhere, when none beside it is near."""
    *above, key = keys
    everywhere = {".".join(path): path for path in _all_keys()}
    beside = difflib.get_close_matches(key, hints, n=1, cutoff=0.6)
    if "." in key:  # as in --options, but in a file
        path = everywhere[difflib.get_close_matches(key, everywhere, n=1, cutoff=0.0)[0]]
        return wrong(
            keys,
            places,
            f"unknown key; did you mean {': {'.join(path[:-1])}: {{{path[-1]}: …{'}' * len(path[:-1])}?",
        )
    elsewhere = [path for path in everywhere.values() if path[-1] == key]
    if not elsewhere:
        near = difflib.get_close_matches(key, [path[-1] for path in everywhere.values()], n=1, cutoff=0.8)
        elsewhere = [path for path in everywhere.values() if path[-1:] == tuple(near)]
    if elsewhere and not beside:
        return wrong(keys, places, f"unknown key; did you mean {'.'.join(elsewhere[0])!r}?")
    beside = beside or difflib.get_close_matches(key, hints, n=1, cutoff=0.0)
    if not beside:
        return wrong(keys, places, "unknown key; there are none here")
    return wrong(keys, places, f"unknown key; did you mean {'.'.join((*above, *beside))!r}?")


def _all_keys() -> tuple[Keys, ...]:
    """Return every key of the configuration, those of all parts included, but not those below names of datasets."""
    from bita.config.schema import Config

    def walk(cls: type, keys: Keys) -> Iterator[Keys]:
        for f in dataclasses.fields(cls):
            yield (*keys, f.name)
            if "keys_of" in f.metadata:
                registry = fields_of(cls)[f.metadata["keys_of"]].metadata["registry"]
                classes = [registry.config(name) for name in registry]
            else:
                classes = [hints_of(cls)[f.name]]
            for inner in classes:
                if is_chosen(inner):
                    for name in inner.chosen_by[0]:
                        yield from walk(inner.chosen_by[0].config(name), (*keys, f.name))
                elif dataclasses.is_dataclass(inner):
                    yield from walk(inner, (*keys, f.name))  # type: ignore[arg-type]

    return tuple(dict.fromkeys(walk(Config, ())))


def shown(value: Any) -> str:
    """Return a value in a message: what it is and, when short, how it is written."""
    kind = TYPE_NAMES.get(type(value), type(value).__name__)
    if isinstance(value, dict | list) or value is None:
        return kind
    written = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{kind}, {written if len(written) <= 60 else written[:57] + '…'}"
