"""The declared types of keys: what a key may hold, wherever it stands."""

from __future__ import annotations

import dataclasses
import types
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from bita.config.keys import PATH, Arguments, fields_of
from bita.config.layers import Keys
from bita.registry import FREE


def hint_of(cls: Any, keys: Keys, given: Any) -> Any:
    """The declared type of a key below a dataclass or another type, marks included; Any where nothing is declared.

    Args:
        cls: where the keys start.
        keys: names, from there down.
        given: what stands there so far, as far as it is known: it names the parts whose own keys are meant.
    """
    hint, parts_below = cls, None
    for name in keys:
        if parts_below is not None:  # of own keys by name of the part
            hint, parts_below = parts_below.config(name) if name in parts_below else Any, None
            given = given.get(name) if isinstance(given, dict) else None
            continue
        hint = kinds_of(hint)[0][0]
        given = given if isinstance(given, dict) else {}
        if is_chosen(hint):
            parts, chooser = hint.chosen_by
            part = given.get(chooser, fields_of(hint)[chooser].default)
            named = (
                [part]
                if part in parts
                else [other for other in parts if name in fields_of(parts.config(other))]
            )
            hint = parts.config(named[0]) if named else hint
        if dataclasses.is_dataclass(hint):
            metadata = fields_of(hint)[name].metadata if name in fields_of(hint) else {}  # type: ignore[arg-type]
            parts_below = metadata.get("registry") if "own_keys" in metadata else None
            hint = _hint_in(hint, name, given)
        elif get_origin(hint) is dict:
            hint = get_args(hint)[1]
        else:
            return Any
        given = given.get(name)
    return hint


def _hint_in(cls: Any, name: str, given: dict[str, Any]) -> Any:
    """The declared type of one key of a dataclass; of own keys of the part that is named beside it, their dataclass."""
    field = fields_of(cls).get(name)
    if field is None:
        return Any
    if "keys_of" in field.metadata:
        chooser = fields_of(cls)[field.metadata["keys_of"]]
        part = given.get(chooser.name, chooser.default)
        config = chooser.metadata["registry"].config(part) if part in chooser.metadata["registry"] else FREE
        return Arguments if config is FREE else config
    return hints_of(cls)[name]


def kinds_of(hint: Any) -> tuple[list[Any], frozenset[str]]:
    """Return what a type may be, None among it, and the marks that it carries."""
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        kinds, more = kinds_of(inner)
        return kinds, more | frozenset(marks)
    if get_origin(hint) in (Union, types.UnionType):
        parts = [kinds_of(arg) for arg in get_args(hint)]
        return [kind for kinds, _ in parts for kind in kinds], frozenset().union(
            *(marks for _, marks in parts)
        )
    return [hint], frozenset()


def is_path(hint: Any) -> bool:
    """Return whether a declared type is a path, or may hold one."""
    return (isinstance(hint, str) and hint == PATH) or any(map(is_path, get_args(hint)))


def is_chosen(hint: Any) -> bool:
    """Return whether this is what the parts of a registry share, so that a name says which keys there are."""
    return getattr(hint, "chosen_by", None) is not None


def hints_of(cls: type[Any]) -> dict[str, Any]:
    """Return the type of every key of a dataclass."""
    hints = _all_hints(cls)  # type: ignore[arg-type]  # classes are hashable
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


@cache
def _all_hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)
