"""How a dataclass of keys says what a key may hold: its range, the parts it may name, whose keys stand below it."""

from __future__ import annotations

import copy
import dataclasses
from typing import Annotated, Any, ClassVar, TypeVar, cast

from bita.registry import Registry

T = TypeVar("T")

SEED = 2**63 - 1
"""The largest seed that every generator takes."""


PATH = "path"
"""Marks a text that is a path: `~` and variables of the environment stand for what they mean on this machine."""
REPLACED = "replaced"
"""Marks a mapping that an option replaces whole."""
FilePath = Annotated[str, PATH]
"""A file, folder or address, or a name of the hub."""
Arguments = Annotated[dict[str, Any], REPLACED]
"""Keys that another library knows."""


Fault = tuple[str, str]
"""A key, with dots where it stands below others, and what is wrong with it beside the others."""


def key(default: T, **limits: float) -> T:
    """Return a key with its default and the range of its numbers, of those in lists and mappings too.

    Args:
        default: of a list or a mapping each gets its own copy.
        limits: `at_least`, `above`, `below`, `at_most`.
    """
    return _field(default, limits)


def name_of(registry: Registry, default: str | None = None) -> Any:
    """Return a key that names a part of a registry; without a default it must be given."""
    if default is None:
        return dataclasses.field(metadata={"registry": registry})
    return _field(default, {"registry": registry})


def names_of(registry: Registry, default: T, **limits: float) -> T:
    """Return a list of names of parts, or a mapping from names, with the range of the numbers in it (`key`)."""
    return _field(default, {"registry": registry} | limits)


def keys_of(name: str) -> Any:
    """Return a key that holds the own keys of the part that the key `name` beside it names."""
    return dataclasses.field(default=cast(Any, None), metadata={"keys_of": name})


def own_keys_of(registry: Registry) -> Any:
    """Return a mapping from names of parts to their own keys."""
    return _field({}, {"registry": registry, "own_keys": True})


def _field(default: T, metadata: dict[str, Any]) -> T:
    if isinstance(default, list | dict):
        return cast(T, dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata))
    return dataclasses.field(default=default, metadata=metadata)


class WithParts:
    """A dataclass some of whose keys name parts: what is not given of a part's own keys are their defaults.

    Attributes:
        chosen_by: registry, and the key that names one of its parts, whose `Config` is what is to be built.
    """

    chosen_by: ClassVar[tuple[Registry, str] | None] = None

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            if "keys_of" in f.metadata and getattr(self, f.name) is None:
                setattr(self, f.name, named(type(self), f.name, getattr(self, f.metadata["keys_of"]))())


def named(cls: type, keys: str, name: str) -> type[Any]:
    """The dataclass of the own keys under `keys`, a key of `cls`, where the part that they belong to is `name`."""
    registry: Registry = registry_of(cls, fields_of(cls)[keys].metadata["keys_of"])
    return registry.config(name)


def registry_of(cls: type, name: str) -> Registry:
    """Return the registry whose parts the key `name` of a dataclass may name."""
    registry: Registry = fields_of(cls)[name].metadata["registry"]
    return registry


def fields_of(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a dataclass by name."""
    return {f.name: f for f in dataclasses.fields(cls)}
