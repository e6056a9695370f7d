"""WebDataset shards: image-caption pairs in plain tar files, for corpora that are too large for single files.

    FOLDER/train-000000.tar …      members KEY.jpg (or another image) and KEY.json or KEY.txt, side by side
    FOLDER/train.shards.json       {"shards": [{"file", "records"}, …]}
    FOLDER/train.shards.npy        (records, 5) int64: shard, offset and size of the image, offset and size of the text

``KEY.json`` holds {"image_id", "captions"} (or {"caption"}), ``KEY.txt`` one caption. The index is memory-mapped and
records are read at their offset, so memory does not grow with the corpus, any step can be resumed without reading what
is skipped, and ranks and workers share the records as they share those of any other dataset.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from bita.datasets.captions import Processors, group_by_image, read_annotations
from bita.errors import UserError
from bita.files import write_text
from bita.processors.rgb import IMAGE_SUFFIXES, decode_rgb

INDEX_SUFFIX = ".shards.json"
TEXT_SUFFIXES = (".json", ".txt")
_BLOCK = 512
_OPEN_FILES = 32


@dataclass(frozen=True)
class ShardRecord:
    """One image as it is stored."""

    key: str
    suffix: str
    """Of the image file, with its dot."""
    image: bytes
    captions: tuple[str, ...]
    image_id: int


class ShardDataset:
    """Training records of shards: like a ``CaptionDataset``, an item is an image with one or n captions drawn.

    Args:
        name: The dataset's name in the configuration.
        split: The split's name.
        index: The ``.shards.json`` file.
        processors: Image and text processors; the training ones are used.
        captions_per_image: Captions drawn an image; None draws one.
        draft: (width, height) that a JPEG has at least after decoding; None decodes in full.

    Raises:
        UserError: The index or a shard is missing, or the index does not fit the shards.
    """

    cache = None
    features = None
    sharded = True

    def __init__(
        self,
        name: str,
        split: str,
        index: Path,
        processors: Processors,
        *,
        captions_per_image: int | None = None,
        draft: tuple[int, int] | None = None,
    ) -> None:
        self.name = name
        self.split = split
        self.index = index
        self.processors = processors
        self.captions_per_image = captions_per_image
        self.draft = draft
        self.files, self.offsets = read_index(index)
        self._handles: dict[int, int] = {}

    def __len__(self) -> int:
        """Images."""
        return len(self.offsets)

    def drawn(self, index: int, generator: torch.Generator) -> tuple[Image.Image, list[str], int]:
        """Return image ``index`` (8-bit RGB), its drawn captions, and its id; errors name shard and record."""
        shard, image_start, image_size, text_start, text_size = self.offsets[index].tolist()
        where = self.where(index)
        captions, image_id = parse_text(self._read(shard, text_start, text_size), index, where)
        order = torch.randperm(len(captions), generator=generator).tolist()
        chosen = [captions[order[k % len(order)]] for k in range(self.captions_per_image or 1)]
        image = decode_rgb(self._read(shard, image_start, image_size), where, draft=self.draft)
        return image, chosen, image_id

    @property
    def image_count(self) -> int:
        """Images of the split."""
        return len(self.offsets)

    def where(self, index: int) -> str:
        """Return the shard of item ``index`` and its number, for messages."""
        return f"{self.files[self.offsets[index, 0]]}: record {index}"

    def _read(self, shard: int, start: int, size: int) -> bytes:
        """Read bytes of a shard; at most ``_OPEN_FILES`` stay open."""
        if shard not in self._handles:
            while len(self._handles) >= _OPEN_FILES:
                os.close(self._handles.pop(next(iter(self._handles))))
            try:
                self._handles[shard] = os.open(self.files[shard], os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{self.files[shard]}: shard does not open ({error.strerror})") from None
        return os.pread(self._handles[shard], size, start)

    def __getstate__(self) -> dict[str, Any]:
        """Travel to worker processes without open files and without the index's bytes."""
        return {**self.__dict__, "_handles": {}, "offsets": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.files, self.offsets = read_index(self.index)

    def __del__(self) -> None:
        for handle in getattr(self, "_handles", {}).values():
            os.close(handle)


def parse_text(content: bytes, index: int, where: str) -> tuple[list[str], int]:
    """Return captions and image id of a record's text member; a record without an id has its number."""
    try:
        text = content.decode()
        fields = json.loads(text) if text.lstrip().startswith("{") else {"caption": text}
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise UserError(f"{where}: text is neither JSON nor UTF-8") from None
    captions = fields.get("captions", [fields.get("caption")])
    if (
        not isinstance(captions, list)
        or not captions
        or not all(isinstance(c, str) and c.strip() for c in captions)
    ):
        raise UserError(f"{where}: caption is missing or empty")
    image_id = fields.get("image_id", index)
    return captions, image_id if isinstance(image_id, int) else index


def read_index(path: Path) -> tuple[list[Path], npt.NDArray[np.int64]]:
    """Return the shards' files and the memory-mapped (records, 5) offsets of an index."""
    try:
        content = json.loads(path.read_text())
        shards = [(path.parent / shard["file"], int(shard["records"])) for shard in content["shards"]]
        offsets: npt.NDArray[np.int64] = np.load(path.with_suffix(".npy"), mmap_mode="r")
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: shard index is missing; make it: python scripts/data/make_shards.py"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no shard index ({type(error).__name__}: {error})") from None
    missing = [file for file, _ in shards if not file.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: shard is missing ({len(missing)} of {len(shards)} are)")
    if sum(records for _, records in shards) != len(offsets):
        raise UserError(
            f"{path}: {len(offsets)} offsets do not fit the shards' records; make the index again"
        )
    return [file for file, _ in shards], offsets


def prepared_records(folder: Path, split: str) -> Iterator[ShardRecord]:
    """Yield the images of a prepared split with all their captions, in the order of its annotation file."""
    records = read_annotations([folder / "annotations" / f"{split}.json"])
    for group in group_by_image(records):
        first = records[group[0]]
        path = folder / "images" / first.image
        captions = tuple(records[record].caption for record in group)
        yield ShardRecord(
            f"{first.image_id:09d}", path.suffix.lower(), path.read_bytes(), captions, first.image_id
        )


def write_shards(records: Iterable[ShardRecord], folder: Path, split: str, per_shard: int) -> Path:
    """Write records as shards with their index, which comes last; returns the index. Memory holds one record."""
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    file: tarfile.TarFile | None = None
    for count, record in enumerate(records):
        if count % per_shard == 0:
            _finish(file, folder, names)
            names.append(f"{split}-{len(names):06d}.tar")
            file = tarfile.open(folder / f"{names[-1]}.part", "w")  # noqa: SIM115
        assert file is not None
        text = json.dumps({"image_id": record.image_id, "captions": record.captions}, ensure_ascii=False)
        for suffix, content in ((record.suffix, record.image), (".json", text.encode())):
            member = tarfile.TarInfo(f"{record.key}{suffix}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    _finish(file, folder, names)
    return index_shards([folder / name for name in names], folder / f"{split}{INDEX_SUFFIX}")


def _finish(file: tarfile.TarFile | None, folder: Path, names: Sequence[str]) -> None:
    if file is not None:
        file.close()
        (folder / f"{names[-1]}.part").replace(folder / names[-1])


def index_shards(files: Sequence[Path], index: Path) -> Path:
    """Index tar files (written here or elsewhere) that lie beside ``index``; returns it.

    Raises:
        UserError: A file is no plain tar file, or an image in it has no text beside it.
    """
    rows: list[npt.NDArray[np.int64]] = []
    for number, file in enumerate(files):
        found = np.array(list(_members(file, number)), dtype=np.int64).reshape(-1, 5)
        rows.append(found)
    if not sum(len(found) for found in rows):
        raise UserError(f"{index}: no records in {len(files)} shards")
    temporary = index.with_suffix(".tmp.npy")
    np.save(temporary, np.concatenate(rows))
    temporary.replace(index.with_suffix(".npy"))
    shards = [{"file": file.name, "records": len(found)} for file, found in zip(files, rows, strict=True)]
    write_text(index, json.dumps({"shards": shards}, indent=1) + "\n")
    return index


def _members(file: Path, number: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (shard, image offset, image size, text offset, text size) of every record of a tar file.

    Of a record's texts the .json counts before the .txt, which img2dataset writes beside it.
    """
    open_records: dict[str, dict[str, tuple[int, int]]] = {}
    last = ""
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]
                key, suffix = os.path.splitext(member.name)
                is_image = suffix.lower() in IMAGE_SUFFIXES
                if not (is_image or suffix in TEXT_SUFFIXES) or not member.isfile():
                    continue
                if key != last and len(open_records.get(last, ())) == 2:
                    parts = open_records.pop(last)
                    yield (number, *parts["image"], *parts["text"])
                parts, last = open_records.setdefault(key, {}), key
                if is_image or "text" not in parts or suffix == ".json":
                    parts["image" if is_image else "text"] = (member.offset_data, member.size)
            if len(open_records.get(last, ())) == 2:
                parts = open_records.pop(last)
                yield (number, *parts["image"], *parts["text"])
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{file}: no plain tar file ({error})") from None
    if open_records:
        raise UserError(f"{file}: {next(iter(open_records))}: an image and a .json or .txt belong together")
