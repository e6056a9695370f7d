"""Tokenizers, from local folders or by name; a local folder is never asked of a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bita.errors import ConfigError
from bita.magic import pointer, why_not_weights
from bita.packages import SCHEME, unpacked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LANGUAGE_MODEL_FOLDER = "language_model"
"""Where an exported folder keeps its language model."""
TOKENIZER_FOLDER = "tokenizer"
"""Where a run keeps its language model's tokenizer."""
TEXT_TOKENIZER_FOLDER = "text_tokenizer"
"""Where an exported folder keeps stage 1's."""


def load_tokenizer(
    key: str, source: str | None, required: bool, *, dec: bool = False
) -> PreTrainedTokenizerBase | None:
    """Load a tokenizer.

    Args:
        key: the configuration key that names it, for messages.
        source: a local folder, a .gguf file, or a name on the hub.
        required: False gives None unless `source` is a local folder or file.
        dec: add the [DEC] token that stage 1's vocabulary ends with.

    Raises:
        ConfigError: it is not there.
    """
    if source is not None and (required or source.startswith(SCHEME)):
        source = unpacked(key, source)
    local = source is not None and Path(source).exists()
    if not required and not local:
        return None
    if source is None:
        raise ConfigError(f"{key}: names no tokenizer; give a folder")
    from transformers import AutoTokenizer

    where: tuple[str, dict[str, str]] = source, {}
    if source.endswith(".gguf"):
        where = str(Path(source).parent), {"gguf_file": Path(source).name}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            where[0], local_files_only=local, **where[1]
        )
    except Exception as error:
        raise not_there(key, source, error) from error
    if dec:
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


def not_there(key: str, source: str, error: Exception) -> ConfigError:
    """The one-line error for something that transformers could not load."""
    folder = Path(source)
    for file in sorted(folder.iterdir()) if folder.is_dir() else [folder] if folder.is_file() else []:
        instead = pointer(file) if file.is_file() else None
        if instead is None and file.name.endswith((".safetensors", ".bin")):
            instead = why_not_weights(file)
        if instead is not None:
            return ConfigError(f"{key}={source}: {file.name} is {instead}")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ConfigError(f"{key}={source}: not a readable folder, nor a name that can be fetched ({reason})")
