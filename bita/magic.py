"""What a file really is, by its first bytes; its name never decides."""

from __future__ import annotations

import json
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
ANNEX_POINTER = b"/annex/objects/"
DAMAGED = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError)
"""What reading a damaged tar archive raises, packed or not."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How a TIFF begins, in either order of bytes, small or big."""
HEAD = 1024
"""Bytes that are enough to tell what a file is."""
SHOWN = 5
"""Names that a message shows of what an archive or a folder holds."""
PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
}
_NAME = "name the file of weights"
OTHERS = {
    b"GGUF": ("a GGUF file of a language model", "only model.opt_model and its tokenizer read that"),
    b"\x89HDF\r\n": (
        "an HDF5 file",
        "if it is of Keras, convert it to a .safetensors file of PyTorch's weights",
    ),
    b"\x93NUMPY": ("one NumPy array", "name a file of named tensors"),
    b"\x89PNG": ("a PNG image", _NAME),
    b"\xff\xd8\xff": ("a JPEG image", _NAME),
    **dict.fromkeys(TIFF, ("a TIFF image", _NAME)),
    b"\0\0\0\x0cJXL ": ("a JPEG XL image", _NAME),
    b"\xff\x0a": ("a JPEG XL image", _NAME),
    b"%PDF": ("a PDF document", _NAME),
    b"\x7fELF": ("a program", _NAME),
}
"""Beginning → what a file is, and what to do where weights are wanted."""
TF_CHECKPOINT = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")
TF_INDEX_END = bytes.fromhex("57fb808b247547db")
"""How the index of a TensorFlow checkpoint ends (a LevelDB table)."""
CONVERT_TF = (
    "a TensorFlow checkpoint; convert it, for instance with transformers' from_pretrained(…, from_tf=True)"
)


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins as safetensors do: the length of a JSON header, then the header."""
    head = _head(path)
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def is_shard_index(path: Path) -> bool:
    """Return whether a file is JSON that says in which shard each tensor is."""
    if not _head(path).lstrip().startswith(b"{"):
        return False
    try:
        return "weight_map" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False


def why_not_weights(path: Path) -> str | None:
    """Return what a file is instead of weights, and what to do, in words; None where reading it may succeed.

    A folder is one with none of the known files in it.
    """
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)}, which is not there; fetch the file itself"
    if path.is_dir():
        return _folder(path)
    size, head = path.stat().st_size, _head(path)
    if size == 0:
        return "empty; fetch it again"
    if is_safetensors(path):
        needs = 8 + int.from_bytes(head[:8], "little")
        cut = f"cut off: safetensors of {size} bytes, whose header alone has {needs}; fetch it again"
        return cut if size < needs else None
    if head.startswith(b"PK"):
        return _zip(path)
    if size > 512 and head[257:262] == b"ustar":
        return _tar(path)
    if head.startswith(b"\x80"):
        return None  # a pickle
    if packed(head) is not None:
        return packed(head)
    for start, (what, remedy) in OTHERS.items():
        if head.startswith(start):
            return f"{what}; {remedy}"
    if not head.strip(b"\0"):
        return f"nothing but zeros ({size} bytes); its download broke off, fetch it again"
    if head[:1] == b"\x08" and head[2:3] == b"\x12" and head[1] < 32 and size > 16:
        return "an ONNX model, a graph without the names of the weights; name the file that it was made from"
    if TF_CHECKPOINT.search(path.name) or _tail(path, 8) == TF_INDEX_END:
        return CONVERT_TF
    return _text(path, head, size)


def pointer(path: Path) -> str | None:
    """Return what stands in the place of a file that was not fetched, as `stand_in` says; else None."""
    return stand_in(_head(path))


def stand_in(content: bytes) -> str | None:
    """What stands in the place of a file that was not fetched, and what to do; None where it may be the file itself.

    Args:
        content: the file, or its beginning.
    """
    if content.startswith(LFS_POINTER):
        return "a Git LFS pointer, not the file itself; fetch it with: git lfs pull"
    if ANNEX_POINTER in content[:HEAD].split(b"\n")[0] and len(content) < 512:
        return "a git-annex pointer, not the file itself; fetch it with: git annex get"
    begin = content[:HEAD].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if re.match(rb"<(!doctype\s+html|html|head|\?xml|body|script)\b", begin) and b"<svg" not in begin:
        page = "an XML answer of a server" if begin.startswith(b"<?xml") else "an HTML page"
        return (
            f"{page} ({_title(content)}), not the file itself; the address led to a page, download the file"
        )
    return None


def packed(content: bytes) -> str | None:
    """Return what a file with this beginning is packed in, and what to do; None where it is not."""
    for start, name in PACKED.items():
        if content.startswith(start):
            return f"compressed ({name}); unpack it and name what is in it"
    return None


def other_kind(content: bytes) -> str | None:
    """Return what a file with this beginning is, where it is neither text nor an image that opens; None: not known."""
    if content[:HEAD] and not content[:HEAD].strip(b"\0"):
        return "nothing but zeros; its download broke off, fetch it again"
    if content.startswith(b"PK\x03\x04"):
        return "a zip archive, or a table of Excel; unpack it, or save the table as CSV"
    if content[4:8] == b"ftyp" and content[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        return "a HEIF image; convert it to PNG or TIFF"
    names = (name for start, (name, _) in OTHERS.items() if content.startswith(start))
    return stand_in(content) or packed(content) or next(names, None)


def _text(path: Path, head: bytes, size: int) -> str | None:
    """Text, which no weights are, of several kinds; None for bytes that mean nothing."""
    with path.open("rb") as file:
        instead = stand_in(file.read(100_000))
    if instead is not None:
        return instead
    try:
        text = head.decode(
            "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "strict"
        ).strip()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return None
        text = head[: error.start].decode("utf-8-sig").strip()
    if any(ord(letter) < 32 and letter not in "\t\r\n\f" for letter in text):
        return None
    begin = " ".join(text[:200].split())
    if begin.startswith(("{", "[")):
        return f"JSON: {begin[:60]}…; name the file of weights"
    if begin.startswith("model_checkpoint_path:"):
        return CONVERT_TF
    if not begin:
        return f"blank ({size} bytes); fetch it again"
    return f"text: {begin[:60]!r}; name the file of weights"


def _title(content: bytes) -> str:
    """Return what a page says that it is."""
    text = content[:100_000].decode("utf-8", "replace")
    found = re.search(r"<(title|message|code)[^>]*>(.*?)</", text, re.IGNORECASE | re.DOTALL)
    return " ".join((found[2] if found else text[:60]).split())[:60]


def _zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return f"cut off: a zip archive ({path.stat().st_size} bytes) without its end; fetch it again"
    if any(name.endswith(("data.pkl", "constants.pkl")) for name in names):
        return None
    return f"a zip archive of {_some(names)}; unpack it and name the file of weights in it"


def _tar(path: Path) -> str | None:
    try:
        with tarfile.open(path) as archive:
            names = archive.getnames()
    except DAMAGED:
        return "a damaged tar archive; fetch it again"
    if {"storages", "tensors", "pickle"} <= set(names):
        return "in torch's format of before 0.4; load it with a torch that you trust the file to, and save it again"
    return f"a tar archive of {_some(names)}; unpack it and name the file of weights in it"


def _folder(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        return (
            "a checkpoint in pieces of torch.distributed; put it together with: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
        )
    if any(name.startswith("global_step") for name in names) or any(
        name.endswith("_states.pt") for name in names
    ):
        return (
            "a checkpoint of DeepSpeed; name its mp_rank_00_model_states.pt, or put ZeRO's shares together with its "
            "script: python zero_to_fp32.py FOLDER FILE"
        )
    if "saved_model.pb" in names or any(TF_CHECKPOINT.search(name) for name in names):
        return CONVERT_TF
    if "flax_model.msgpack" in names:
        return "a model of Flax alone; convert it with transformers' from_pretrained(…, from_flax=True)"
    return f"a folder with {_some(names)}; name the file of weights in it" if names else "an empty folder"


def _some(names: Iterable[str]) -> str:
    names = [name for name in names if not name.endswith("/")]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def _tail(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - count, 0))
        return file.read(count)
