"""What trainers put round a state dict, in any order: dictionaries, modules, prefixes of names.

All of it becomes one dotted prefix: in `{"state_dict": {"module.visual.conv1.weight": …}}` the encoder stands under
`state_dict.module.`. A part is found by a name that it must have; where several places have it, one must be chosen,
`FILE#NAME`, NAME being a piece of the prefix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bita.errors import UserError
from bita.weights.layouts import Renamed
from bita.weights.pickles import StandIn, as_tensor

INSERTED = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|_fpw_module|_flat_param)\."
)
"""Pieces that torch.compile, FSDP and the like put anywhere into a name."""
USUAL = (
    "model",
    "state_dict",
    "model_state_dict",
    "module",
    "net",
    "network",
    "backbone",
    "encoder",
    "weights",
)
"""First pieces that are no part's own name."""
BESIDE = re.compile(r"(optim|lr_|sched|scaler|rng|callbacks|loops)", re.IGNORECASE)
"""How what is kept beside the weights begins."""
TOP = "."
"""Chooses what stands under no prefix."""
AVERAGES = "shadow_params"
"""Averages of weights as a list, without names."""


def flattened(content: Any, prefix: str = "", above: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """Return every tensor in nested dictionaries and modules, by its dotted name without what is `INSERTED`."""
    found: dict[str, Tensor] = {}
    if id(content) in above:
        return found
    for key, value in _entries(content):
        name, tensor = INSERTED.sub("", prefix + str(key)), as_tensor(value)
        if tensor is not None:
            found[name] = tensor
        elif isinstance(value, Mapping | StandIn):
            found |= flattened(
                value, f"{name}." if name and not name.endswith(".") else name, (*above, id(content))
            )
    return found


def _entries(content: Any) -> Iterable[tuple[Any, Any]]:
    """(name, value) of a dictionary, of a kind of dictionary, or of a module that was pickled whole."""
    if isinstance(content, Mapping):
        return content.items()
    state = content.state if isinstance(content, StandIn) and isinstance(content.state, dict) else {}
    if "_modules" in state:
        parts = (state.get(kind) or {} for kind in ("_parameters", "_buffers", "_modules"))
        return [entry for part in parts for entry in _entries(part)]
    return content.items.items() if isinstance(content, StandIn) else []


def averages_in(content: Any, prefix: str = "") -> list[str]:
    """Prefixes of what holds averages without names."""
    found = []
    for key, value in _entries(content):
        if key == AVERAGES and isinstance(value, list | tuple) and value:
            found.append(prefix)
        elif isinstance(value, Mapping | StandIn) and prefix.count(".") < 4:
            found += averages_in(value, f"{prefix}{key}.")
    return found


class Below(Mapping[str, Tensor]):
    """The tensors under a prefix, by their names without it."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        self._tensors, self._prefix = tensors, prefix
        self._names = [name for name in tensors if name.startswith(prefix)]

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._prefix + name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return (name[len(self._prefix) :] for name in self._names)

    def __len__(self) -> int:
        return len(self._names)


def places(names: Iterable[str], marks: Sequence[str], inner: Sequence[str] = ()) -> list[str]:
    """Prefixes under which one of some names stands.

    Args:
        names: of all tensors.
        marks: names that the wanted part must have, in one layout or another.
        inner: prefixes that belong to a layout: what stands under one of them is not another place.
    """
    longest_first = sorted(marks, key=len, reverse=True)
    found: dict[str, None] = {}
    for name in names:
        mark = next((mark for mark in longest_first if name == mark or name.endswith(f".{mark}")), None)
        if mark is not None:
            found[name.removesuffix(mark)] = None
    return [
        place
        for place in found
        if not any(place.endswith(own) and place[: -len(own)] in found for own in inner)
    ]


def usual_prefix(names: Iterable[str]) -> str:
    """The `USUAL` pieces that all names begin with, where no place is found: for messages about what is missing."""
    rest, prefix = [name for name in names if not BESIDE.match(name)], ""
    while rest:
        firsts = {name.partition(".")[0] for name in rest}
        piece = firsts.pop()
        if firsts or piece not in USUAL:
            return prefix
        prefix, rest = f"{prefix}{piece}.", [name.partition(".")[2] for name in rest]
    return prefix


def choose(
    where: str,
    file: Mapping[str, Tensor],
    found: list[str],
    choice: str | None,
    rename: Callable[[Mapping[str, Tensor]], Renamed],
    fits: Callable[[Renamed], bool],
) -> Renamed:
    """Return the tensors of the one place that is meant, renamed.

    Args:
        where: the file, for messages.
        file: all its tensors.
        found: what `places` gave.
        choice: what stands behind `#` in the configuration.
        rename: names of a layout → ours.
        fits: whether renamed tensors could be the part's.

    Raises:
        UserError: none is chosen and several fit; or none is there that was chosen.
    """
    unnamed = list(getattr(file, "unnamed", ()))
    if choice is not None:
        found, all_found = _matching(found, choice), found
        if not found and _matching(unnamed, choice):
            raise UserError(f"{where}#{choice}: {_without_names(_matching(unnamed, choice)[0])}")
        if not found:
            raise UserError(
                f"{where}#{choice}: no weights under that name; it has {_listed(all_found) or 'none'}"
            )
    elif unnamed and not found:
        raise UserError(f"{where}: {_without_names(unnamed[0])}")
    renamed = {place: rename(Below(file, place)) for place in found}
    if len(found) > 1:
        fitting = [place for place in found if fits(renamed[place])]
        found = fitting or [min(found, key=len)]  # none fits: what is missing is said of the outermost
    if len(found) + (len(unnamed) if choice is None else 0) > 1:
        options = [*found, *(unnamed if choice is None else [])]
        raise UserError(
            f"{where}: weights under {_listed(options)}, and any of them may be meant; choose one: "
            f"{where}#{_label(options[0])}"
        )
    place = found[0] if found else usual_prefix(file)
    result = renamed[place] if found else rename(Below(file, place))
    return replace(result, place=place)


def _matching(found: list[str], choice: str) -> list[str]:
    """The places that a choice means: the one that is called so, else those that begin so, else that contain it."""
    if choice == TOP:
        return [place for place in found if not place]
    tests: list[Callable[[str], bool]] = [
        lambda place: place == f"{choice}.",
        lambda place: place.startswith(f"{choice}."),
        lambda place: f".{choice}." in f".{place}",
    ]
    return next((hits for test in tests if (hits := [place for place in found if test(place)])), [])


def _label(place: str) -> str:
    return place.rstrip(".") or TOP


def _listed(found: list[str]) -> str:
    return " and ".join(repr(_label(place)) for place in found)


def _without_names(place: str) -> str:
    return (
        f"{place}{AVERAGES} is a list of averages without names, which cannot be told apart; copy them into the model "
        "(ema.copy_to) and save its state_dict()"
    )


def split_names(entries: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Names of an index of shards, cleaned as `flattened` does."""
    for name, shard in entries.items():
        yield INSERTED.sub("", name), shard
