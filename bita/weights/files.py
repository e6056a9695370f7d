"""Files of tensors: one file, shards behind an index, or a folder with either.

`WeightFile` reads lazily: it maps files into memory where their format allows it, and holds one shard at a time, so
that loading a model takes the model's own memory and at most one shard.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bita.checkpoint import FOLDER_FILES, INDEX_SUFFIX
from bita.errors import UserError, no_file
from bita.weights.torchscript import is_torchscript, read_torchscript

SHARD = re.compile(r"^(?P<name>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.\w+)$")
WRAPPER = "module."
"""What distributed training puts before every name."""


class WeightFile(Mapping[str, Tensor]):
    """The tensors of a file, an index, or a folder, by name, in the order of the shards.

    Raises:
        UserError: something is missing (a shard, say), damaged, or would run code.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: tuple[Path | None, dict[str, Tensor]] = (None, {})
        file = find_file(path)
        if file.name.endswith(INDEX_SUFFIX):
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
            self._held = (path, read_tensors(path))
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
        raise UserError(f"weights {path}: the folder holds none of {', '.join(FOLDER_FILES)}")
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
        shards = {_unwrapped(name, entries): index.parent / str(shard) for name, shard in entries.items()}
    except FileNotFoundError as error:
        raise UserError(f"weights {index}: no such file") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"weights {index}: not a readable index of shards; fetch it again") from error
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
    """The tensors of a .safetensors file, of a .pth file that holds nothing but data, or of a TorchScript archive.

    Raises:
        UserError: the file is missing, damaged, or would run code.
    """
    content = _content(path)
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"weights {path}: holds no tensors under 'model', 'state_dict' or at its top level")
    return {_unwrapped(name, content): value for name, value in content.items() if isinstance(value, Tensor)}


def read_config(path: Path) -> Any:
    """The configuration that a file in the published layout carries, ours or another's; None where there is none.

    Raises:
        UserError: as `read_tensors`.
    """
    content = _content(path)
    return content.get("config") if isinstance(content, dict) else None


def _content(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"weights {path}: {no_file(path)}")
    try:
        return _read(path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"weights {path}: refused, since it holds more than tensors and loading it could run code; "
            "ask its author for a .safetensors file"
        ) from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"weights {path}: not a readable checkpoint ({reason}); fetch it again") from error


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if is_torchscript(path):
        return read_torchscript(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _unwrapped(name: str, names: Mapping[str, object]) -> str:
    """A name without the wrapper of distributed training, where all names have it."""
    wrapped = name.startswith(WRAPPER) and next(iter(names)).startswith(WRAPPER)
    return name.removeprefix(WRAPPER) if wrapped else name
