"""Layers that name parts: where one names another part than those below it, what they say of that one goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from bita import registry
from bita.config.keys import fields_of, registry_of
from bita.config.layers import ANY, Keys, Layer, matches, merge
from bita.config.run import RunConfig
from bita.config.schema import ArchConfig
from bita.registry import FREE

ABOUT: dict[Keys, tuple[Keys, ...]] = {
    ("model", "vit_model"): tuple(
        ("model", key) for key in ("vit_depth", "vit_layers", "vit_layers_merge", "vit_weights")
    ),
    ("model", "opt_config", "model_type"): (("model", "opt_config"),),
    ("model", "opt_model"): (("model", "opt_tokenizer"),),
    ("datasets", ANY, ANY, ANY, "name"): (("datasets", ANY, ANY, ANY),),
    ("preprocess", ANY, ANY, "name"): (("preprocess", ANY, ANY),),
}
"""Key that names a part → the keys that are about that very part, beside its own."""
IMPLIED: dict[Keys, str] = {("model", "opt_config", "model_type"): "opt"}
"""Parts that need not be named."""


def stack(*layers: Layer) -> Layer:
    """As `merge`; and a part that a later layer names inherits nothing of another one that layers below name.

    Own keys of the one before are kept where the other part has all of them, as bridges of the same sizes do.
    """
    result = Layer()
    for layer in layers:
        gone = frozenset((*_about(result.content, layer.content), *_own(result.content, layer.content)))
        result = merge(result, dataclasses.replace(layer, replaces=layer.replaces | gone))
    return result


def _about(before: dict[str, Any], now: dict[str, Any]) -> Iterator[Keys]:
    for owner, about in ABOUT.items():
        for keys, name in matches(now, owner):
            old = next((value for _, value in matches(before, keys)), IMPLIED.get(owner, name))
            if name is not None and old != name:
                for path in about:
                    yield tuple(
                        found if part == ANY else part for part, found in zip(path, keys, strict=False)
                    )


def _own(before: dict[str, Any], now: dict[str, Any]) -> Iterator[Keys]:
    model = {**_section(before, "model"), **_section(now, "model")}
    arch = model.get("arch")
    known = isinstance(arch, str) and arch in registry.models
    for section, cls in (
        ("model", registry.models.config(str(arch)) if known else ArchConfig),
        ("run", RunConfig),
    ):
        old, new = _section(before, section), _section(now, section)
        for f in dataclasses.fields(cls):
            chooser = f.metadata.get("keys_of", "")
            if chooser not in new or not isinstance(old.get(f.name), dict):
                continue
            names, kinds = (
                (old.get(chooser, fields_of(cls)[chooser].default), new[chooser]),
                registry_of(cls, chooser),
            )
            if names[0] != names[1] and all(name in kinds for name in names):
                config = kinds.config(names[1])
                if config is FREE or not old[f.name].keys() <= fields_of(config).keys():
                    yield section, f.name


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    section = content.get(name)
    return section if isinstance(section, dict) else {}
