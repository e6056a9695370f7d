"""What a pickled checkpoint holds, without running anything in it.

torch's own reader of plain tensors comes first. It refuses a whole file for one `argparse.Namespace` beside the
weights; such files are read again with a stand-in for every object that is no tensor or plain container: a box that
takes what the file says and does nothing. What reaches for the standard library's functions is refused by name.
"""

from __future__ import annotations

import builtins
import collections
import io
import pickle
import sys
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Self

import numpy as np
import torch

REBUILD = (
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
    "_rebuild_qtensor",
    "_rebuild_sparse_tensor",
    "_rebuild_device_tensor_from_numpy",
)
"""Functions of `torch._utils` that make tensors and nothing else."""
NUMPY = ("_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer")
CONTAINERS = (set, frozenset, bytearray, complex, slice, range)
HARMLESS = (
    *(
        "argparse",
        "collections",
        "dataclasses",
        "datetime",
        "decimal",
        "enum",
        "fractions",
        "functools",
        "logging",
    ),
    *("pathlib", "types", "typing", "uuid"),
)
"""Modules of the standard library whose objects trainers put beside the weights."""


class StandIn:
    """Stands for an object that is not made: it keeps what the file says of it, and does nothing.

    Attributes:
        state: what its class would have been given.
        items: what would have been put into it, where it is a kind of dictionary.
    """

    dump_patches = False  # torch asks classes of old files for it
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *_: object, **__: object) -> Self:
        """Pickles make objects without calling `__init__`."""
        made = super().__new__(cls)
        made.state, made.items = {}, {}
        return made

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        """Nothing: lists of objects are of no use here."""

    def extend(self, values: Any) -> None:
        """Nothing."""

    add = append


class Refused(pickle.UnpicklingError):
    """A file asks for a function or class that is not given; its name."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        names = (IMPORT_MAPPING.get(module, module), name)  # older protocols use Python 2's
        module, name = NAME_MAPPING.get((module, name), names)
        top = module.split(".", maxsplit=1)[0]
        if module == "torch._utils" and name in REBUILD:
            return getattr(torch._utils, name)
        if module == "torch.storage" and name == "_load_from_bytes":
            return lambda data: _load(io.BytesIO(data))
        if top == "numpy" and name in NUMPY:
            return super().find_class(module, name)
        if (module, name) == ("copyreg", "_reconstructor"):
            return _reconstructed
        if module == "builtins":
            made = getattr(builtins, name, None)
            if made in CONTAINERS:
                return made
            if isinstance(made, type):
                return _stand_in(module, name)
            raise Refused(f"builtins.{name}")
        if module == "collections" and name in ("OrderedDict", "defaultdict", "Counter"):
            return getattr(collections, name)
        if module == "_codecs" and name == "encode":
            return lambda text, encoding: text.encode(encoding)
        if top == "torch":
            return _of_torch(module, name)
        if top in sys.stdlib_module_names and top not in HARMLESS:
            raise Refused(f"{module}.{name}")
        return _stand_in(module, name)


def _reconstructed(kind: Any, *_: object) -> StandIn:
    """Return what older protocols make objects with."""
    if not (isinstance(kind, type) and issubclass(kind, StandIn)):
        raise Refused(f"copyreg._reconstructor of {kind}")
    return kind()


def _of_torch(module: str, name: str) -> Any:
    found = getattr(torch, name, None) if module == "torch" else None
    if isinstance(found, torch.dtype | torch.layout) or found in (torch.Size, torch.device, torch.Tensor):
        return found
    if (module, name) == ("torch.nn.parameter", "Parameter"):
        return torch.nn.Parameter
    if (module, name) == ("torch.serialization", "_get_layout"):
        return torch.serialization._get_layout
    if "distributed" in module or not name[:1].isupper():
        raise Refused(f"{module}.{name}")
    return _stand_in(module, name)


def _stand_in(module: str, name: str) -> type[StandIn]:
    return type(name.rsplit(".", 1)[-1], (StandIn,), {"__module__": module})


def read_pickle(path: Path) -> Any:
    """Return the content of a file that `torch.save` or `pickle.dump` wrote.

    Raises:
        Refused: it holds what could run code, which did not run; its name is the message.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols newer than torch's own
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError):  # RuntimeError: a plain pickle, which torch did not write
        with path.open("rb") as file:
            return _load(file, path)


def _load(file: IO[bytes], path: Path | None = None) -> Any:
    """Read with stand-ins; a plain pickle too."""
    start = file.tell()
    reader: Any = SimpleNamespace(
        __name__="pickle", Unpickler=_Reader, load=lambda source, **options: _Reader(source, **options).load()
    )
    mapped = path if path is not None and zipfile.is_zipfile(path) else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(
                mapped or file,
                map_location="cpu",
                pickle_module=reader,
                weights_only=False,
                mmap=mapped is not None,
            )
    except RuntimeError as error:
        if "magic number" not in str(error):
            raise
    file.seek(start)
    return _Reader(file).load()


def as_tensor(value: Any) -> torch.Tensor | None:
    """Return a tensor, or an array of numbers as one; None for anything else."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.isnative:
        return torch.from_numpy(np.array(value, order="C"))  # which keeps a number without axes as it is
    return None
