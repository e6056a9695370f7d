"""Files of tensors: one file, shards behind an index, or a folder with either.

`WeightFile` reads lazily: it maps files into memory where their format allows it, and holds one shard at a time, so
that loading a model takes the model's own memory and at most one shard.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bita.checkpoint import FOLDER_FILES, INDEX_SUFFIX
from bita.errors import UserError, no_file
from bita.magic import is_safetensors, is_shard_index, pointer, why_not_weights
from bita.weights.pickles import Refused, read_pickle
from bita.weights.torchscript import is_torchscript, read_torchscript
from bita.weights.wrappers import averages_in, flattened, split_names, usual_prefix

SHARD = re.compile(r"^(?P<name>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.\w+)$")


class WeightFile(Mapping[str, Tensor]):
    """The tensors of a file, an index, or a folder, by dotted name (see `wrappers`), in the order of the shards.

    Attributes:
        unnamed: prefixes of averages that have no names.

    Raises:
        UserError: something is missing (a shard, say), damaged, or would run code.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: tuple[Path | None, dict[str, Tensor]] = (None, {})
        self.unnamed: list[str] = []
        file = find_file(path)
        if file.name.endswith(INDEX_SUFFIX) or (file.is_file() and is_shard_index(file)):
            self._shard_of = read_index(file)
            return
        self._shard_of = dict.fromkeys(self._shard(file), file)

    def __getitem__(self, name: str) -> Tensor:
        shard = self._shard_of[name]
        tensors = self._shard(shard)
        if name not in tensors:
            raise UserError(
                f"weights {self.path}: {name} should be in {shard.name} and is not; fetch both again"
            )
        return tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard_of)

    def __len__(self) -> int:
        return len(self._shard_of)

    def _shard(self, path: Path) -> dict[str, Tensor]:
        if self._held[0] != path:
            self._held = (None, {})  # let go of one shard before the next is opened
            content = _content(path)
            self.unnamed = averages_in(content)
            self._held = (path, _named(path, content))
        return self._held[1]


def find_file(path: Path) -> Path:
    """The weights file or index that a path means: itself, the one in a folder, the index that a shard belongs to.

    Raises:
        UserError: there is none.
    """
    if path.is_dir():
        for name in FOLDER_FILES:
            if (path / name).is_file():
                return path / name
        shards = [entry for entry in sorted(path.iterdir()) if SHARD.match(entry.name)]
        if not shards:
            raise UserError(f"weights {path}: no weights in it, but {why_not_weights(path)}")
        path = shards[0]
    shard = SHARD.match(path.name)
    if shard is None or int(shard["count"]) == 1:
        return path
    index = path.with_name(shard["name"] + shard["suffix"] + INDEX_SUFFIX)
    if not index.is_file():
        raise UserError(
            f"weights {path}: one of {int(shard['count'])} shards, and {index.name} is not beside it; fetch all"
        )
    return index


def read_index(index: Path) -> dict[str, Path]:
    """Tensor name → shard, sorted by shard; every shard is there.

    Raises:
        UserError: the index is damaged, or a shard that it names is missing.
    """
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = dict(split_names({name: index.parent / str(shard) for name, shard in entries.items()}))
    except FileNotFoundError as error:
        raise UserError(f"weights {index}: no such file") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        instead = pointer(index) if index.is_file() else None
        said = f"is {instead}" if instead else "not a readable index of shards; fetch it again"
        raise UserError(f"weights {index}: {said}") from error
    files = sorted(set(shards.values()))
    missing = [file.name for file in files if not file.is_file()]
    outside = [str(file) for file in files if file.parent.resolve() != index.parent.resolve()]
    if outside:
        raise UserError(f"weights {index}: names {outside[0]}, outside its folder; refused")
    if missing:
        raise UserError(
            f"weights {index}: {len(missing)} of {len(files)} shards missing, {', '.join(missing)}; "
            "half a model is not loaded, fetch the rest"
        )
    return dict(sorted(shards.items(), key=lambda entry: entry[1]))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file, by their names without what trainers usually put round all of them.

    Raises:
        UserError: the file is missing, damaged, would run code, or is something else.
    """
    found = _named(path, _content(path))
    prefix = usual_prefix(found)
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


def read_config(path: Path) -> Any:
    """The configuration that a file in the published layout carries, ours or another's; None where there is none.

    Raises:
        UserError: as `read_tensors`.
    """
    content = _content(path)
    return content.get("config") if isinstance(content, dict) else None


def _named(path: Path, content: Any) -> dict[str, Tensor]:
    found = flattened(content)
    if not found and not averages_in(content):
        kind = f"; it is a {type(content).__name__}" if not isinstance(content, dict) else ""
        keys = (
            f"; it has {', '.join(map(str, list(content)[:5]))}"
            if isinstance(content, dict) and content
            else ""
        )
        raise UserError(f"weights {path}: holds no tensors{kind}{keys}")
    return found


def _content(path: Path) -> Any:
    reason = why_not_weights(path) if path.is_symlink() or path.is_file() else None
    if reason is not None:
        raise UserError(f"weights {path}: not a readable checkpoint, but {reason}")
    if not path.is_file():
        raise UserError(f"weights {path}: {no_file(path)}")
    try:
        return _read(path)
    except Refused as error:
        raise UserError(_refused(path, str(error))) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"weights {path}: not a readable checkpoint ({reason}); fetch it again") from error


def _read(path: Path) -> Any:
    if is_safetensors(path):
        from safetensors.torch import load_file

        return load_file(path)
    return read_torchscript(path) if is_torchscript(path) else read_pickle(path)


def _refused(path: Path, what: str) -> str:
    if "distributed" in what:
        return (
            f"weights {path}: holds one process's share ({what}); save the whole state dict where it was trained "
            "(FSDP: full_state_dict)"
        )
    return (
        f"weights {path}: refused, since it asks for {what}, and reading that could run code; where it was trained, "
        "save the tensors alone: torch.save(model.state_dict(), FILE)"
    )
