"""Tokenizers, from local folders or by name; a local folder is never asked of a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

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
VOCABULARY_SUFFIXES = (".json", ".txt", ".model", ".gguf")
T = TypeVar("T")


class Remembered(Generic[T]):
    """What was made of each text, which is made once: captions come again in every epoch.

    Args:
        make: a list of texts → what each becomes, whatever the others are; nobody may change it.
    """

    most = 2**18
    """Texts that are kept; all of the published sets are fewer. Those that come later are made every time."""

    def __init__(self, make: Callable[[list[str]], list[T]]) -> None:
        self._make = make
        self._kept: dict[str, T] = {}

    def __call__(self, texts: list[str]) -> list[T]:
        """Return what each of some texts becomes."""
        unknown = [text for text in dict.fromkeys(texts) if text not in self._kept]
        made = dict(zip(unknown, self._make(unknown), strict=True)) if unknown else {}
        found = [made[text] if text in made else self._kept[text] for text in texts]
        if len(self._kept) + len(made) <= self.most:
            self._kept |= made
        return found


def load_tokenizer(
    key: str, source: str | None, required: bool, *, dec: bool = False
) -> PreTrainedTokenizerBase | None:
    """Load a tokenizer.

    Args:
        key: the configuration key that names it, for messages.
        source: a local folder, a .gguf file, or a name on the hub.
        required: false gives None unless `source` is a local folder or file.
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

    unfetched = _not_fetched(Path(source), VOCABULARY_SUFFIXES)
    if unfetched is not None:  # whose lines would be the words; weights beside it need not be there
        raise ConfigError(f"{key}={source}: {unfetched}")
    where: tuple[str, dict[str, str]] = source, {}
    if source.endswith(".gguf"):
        where = str(Path(source).parent), {"gguf_file": Path(source).name}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            where[0], local_files_only=local, **where[1]
        )
    except Exception as error:
        raise not_there(key, source, error) from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ConfigError(
            f"{key}={source}: a tokenizer without words; its vocabulary (tokenizer.json, vocab.txt, …) is missing or "
            "empty, fetch the whole folder"
        )
    if dec:
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


def not_there(key: str, source: str, error: Exception) -> ConfigError:
    """Return the one-line error for something that transformers could not load."""
    wrong = _not_fetched(Path(source)) or next(
        (
            f"{file.name} is {instead}"
            for file in _files(Path(source))
            if file.name.endswith((".safetensors", ".bin")) and (instead := why_not_weights(file)) is not None
        ),
        None,
    )
    if wrong is not None:
        return ConfigError(f"{key}={source}: {wrong}")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ConfigError(f"{key}={source}: not a readable folder, nor a name that can be fetched ({reason})")


def _files(source: Path) -> list[Path]:
    """Return the files in a folder, or the one that is named; none of a name on the hub."""
    return [file for file in (sorted(source.iterdir()) if source.is_dir() else [source]) if file.is_file()]


def _not_fetched(source: Path, suffixes: tuple[str, ...] = ("",)) -> str | None:
    """Which of the files, of those whose names end so, stands in the place of one that was not fetched, or None."""
    found = ((file.name, pointer(file)) for file in _files(source) if file.name.endswith(suffixes))
    return next((f"{name} is {instead}" for name, instead in found if instead is not None), None)
