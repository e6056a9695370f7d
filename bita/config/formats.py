"""Configurations that earlier versions saved: what became of the keys that are no more.

A key that goes, moves or gets another name leaves a line in `RETIRED`, and `bita.checkpoint.FORMAT` rises with it. So
that every run can be loaded for ever, `tests/fixtures/runs` keeps one of each format.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

RETIRED: dict[str, str | None] = {
    "model.itc_bootstrap_weight": None,  # two losses of stage 1 that model.word_loss_weight took the place of
    "model.itc_pooled_weight": None,
}
"""Dotted key as it was → as it is now, or None where it has no effect any more. `*` stands for a name, the same in
both, such as a dataset's."""


def upgraded(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved configuration under today's keys; what stands under today's already has the last word."""
    result = _copied(content)
    for before, after in RETIRED.items():
        for keys in list(_found(result, before.split("."))):
            above = _at(result, keys[:-1])
            value = above.pop(keys[-1])
            if after is None:
                continue
            names = iter(key for key, piece in zip(keys, before.split("."), strict=True) if piece == "*")
            *place, last = (next(names) if piece == "*" else piece for piece in after.split("."))
            target = result
            for key in place:
                if not isinstance(target.get(key), dict):
                    target[key] = {}
                target = target[key]
            target.setdefault(last, value)
    return result


def _copied(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _copied(value) for key, value in content.items()}
    return content


def _found(content: Any, pattern: list[str], keys: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the places in nested dictionaries that a pattern of keys fits."""
    if not pattern:
        return [keys]
    if not isinstance(content, dict):
        return []
    return [
        found
        for key, value in content.items()
        if fnmatchcase(str(key), pattern[0])
        for found in _found(value, pattern[1:], (*keys, key))
    ]


def _at(content: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    for key in keys:
        content = content[key]
    return content
