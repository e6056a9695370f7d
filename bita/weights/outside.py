"""What a model is made of that no checkpoint holds: frozen parts' files and tokenizers, known by their content.

A checkpoint notes the sha256 of each such file (`Meta.outside`), so that a run goes on with what it was trained with,
wherever that lies and whatever it is called now.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bita.checkpoint import FOLDER_FILES, INDEX_SUFFIX, META_FILE, folder_of, read_meta
from bita.errors import UserError
from bita.files import sha256
from bita.models.base import BitaModel
from bita.packages import unpacked
from bita.registry import models
from bita.weights.files import read_index

LOG = logging.getLogger(__name__)

CONFIGURATION = ("config.json",)
TOKENIZER = (
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
    ),
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model"),
)
"""What a folder of a tokenizer may hold."""
KEYS = {"visual_encoder": "vit_weights"}
"""Part of a model → the key that names its file, where they are called differently."""

Outside = dict[str, dict[str, Any]]
"""Configuration key → {"source": what it named, "files": file name → sha256}."""


def outside(model: BitaModel) -> Outside:
    """The files that a model was built from and that its checkpoints leave out; each is hashed once a process."""
    sources = {KEYS.get(part, part): source for part, source in model.external.items()}
    if "text_model" in model.sources:
        sources["text_model"] = model.sources["text_model"]
    for key in models.config(model.cfg.arch).folders:
        if key.endswith("tokenizer") and getattr(model, "tokenizer", None) is not None:
            named = getattr(model.cfg, key) or getattr(model.cfg, "opt_model", None)
            sources |= {key: named} if named is not None else {}
    found: Outside = {}
    for key, source in sorted(sources.items()):
        files = {file.name: _hash(file) for file in files_of(source, tokenizer=key.endswith("tokenizer"))}
        if files:
            found[f"model.{key}"] = {"source": source, "files": files}
    return found


def files_of(source: str, *, tokenizer: bool = False) -> list[Path]:
    """Return the files that are read of a file, a folder, a package or a name of the hub; none where nothing is there.

    Args:
        source: as in the configuration.
        tokenizer: whether a tokenizer is read of it, or weights with their configuration, the shards included.
    """
    path = Path(unpacked("model", source))
    if not path.exists():
        kept = _kept_of_hub(source)
        if kept is None:
            return []
        path = kept
    if path.is_file():
        return [path]
    if tokenizer:
        return [path / name for name in TOKENIZER if (path / name).is_file()]
    files = [path / name for name in CONFIGURATION if (path / name).is_file()]
    weights = next((path / name for name in FOLDER_FILES if (path / name).is_file()), None)
    if weights is None:
        return files
    shards = sorted(set(read_index(weights).values())) if weights.name.endswith(INDEX_SUFFIX) else []
    return [*files, weights, *shards]


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, by key, what holds other content now than then; what only one of them has is passed over."""
    found = []
    for key in sorted(then.keys() & now.keys()):
        before, after = then[key]["files"], now[key]["files"]
        if sorted(before.values()) == sorted(after.values()):
            continue
        other = sorted(name for name in after if after[name] not in before.values())
        was = f"{then[key]['source']} held" if then[key]["source"] != now[key]["source"] else "it held"
        which = f" ({', '.join(other[:3])})" if other and len(after) > 1 else ""
        found.append(
            f"{key}={now[key]['source']} holds other content{which} than {was} when the run was trained"
        )
    return found


def warn_of_others(model: BitaModel, checkpoint: Path) -> None:
    """Warn, by key, where a model's frozen parts are not those that a checkpoint was trained with.

    Tokenizers that the run keeps a copy of are passed over: the same written again is another file.
    """
    folder = folder_of(checkpoint)
    if not (folder / META_FILE).is_file():
        return
    try:
        then = read_meta(folder).outside
    except UserError:
        return
    run = folder.resolve().parent.parent
    if not then:
        return
    now = {
        key: entry
        for key, entry in outside(model).items()
        if not Path(entry["source"]).resolve().is_relative_to(run)
    }
    for difference in differences(then, now):
        LOG.warning("%s: %s", checkpoint, difference)


def _hash(file: Path) -> str:
    status = file.stat()
    return _hash_of(file.resolve(), status.st_size, status.st_mtime_ns)


@cache
def _hash_of(file: Path, _size: int, _time: int) -> str:
    return sha256(file)


def _kept_of_hub(name: str) -> Path | None:
    """Return the folder where a model of the hub lies on this machine, once it was fetched."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None
