"""WebDataset shards: image-caption pairs in plain tar files, for corpora that are too large for single files.

    FOLDER/train-000000.tar …      members KEY.jpg (or another image) and KEY.json or KEY.txt, side by side
    FOLDER/train.shards.json       {"shards": [{"file", "records", "bytes"}, …]}
    FOLDER/train.shards.npy        (records, 6) int64: shard, offset and size of the image, offset and size of the text,
                                   1 where the text is JSON

`KEY.json` holds {"image_id", "captions"} (or {"caption"}), a list of captions or one; `KEY.txt` (`.caption`,
`.cap`) one caption a line. Every text is read when the index is made, so that a wrong one is found then. The index is
memory-mapped and records are read at their offset, so memory does not grow with the corpus, any step can be resumed
without reading what is skipped, and ranks and workers share the records as they share those of any other dataset.
"""

from __future__ import annotations

import io
import json
import os
import resource
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from bita.config.checks import SHARD_INDEX
from bita.datasets.annotations import read_annotations, said
from bita.datasets.cache import FeatureCache, PixelCache
from bita.datasets.captions import IDS_OF_A_DATASET, CaptionDataset, Processors, draw_captions, group_by_image
from bita.datasets.names import ImageFolder, is_system_file
from bita.errors import ConfigError, UserError, no_file
from bita.files import replacing, write_json
from bita.magic import HEAD, other_kind, stand_in
from bita.processors.rgb import IMAGE_SUFFIXES, ImageOpener
from bita.records import Id, Record, decode, lines, parse_json, read_object

TEXT_SUFFIXES = (".json", ".txt", ".caption", ".cap")
"""Of a record's texts the first that has captions counts; img2dataset writes a .json and a .txt."""
COLUMNS = 6
_MAKE = "make it (again): python scripts/make_shards.py index"


@dataclass(frozen=True)
class ShardRecord:
    """One image as it is stored."""

    key: str
    suffix: str
    """Of the image file, with its dot."""
    image: bytes
    captions: tuple[str, ...]
    image_id: Id


class ShardDataset:
    """Training records of shards: like a `CaptionDataset`, an item is an image with one or n captions drawn.

    Args:
        name: the dataset's name in the configuration.
        split: the split's name.
        index: the `.shards.json` file.
        processors: image and text processors; the training ones are used. Without any, images can be opened.
        captions_per_image: captions drawn an image; None draws one.

    Raises:
        UserError: the index or a shard is missing, or the index does not fit the shards.
    """

    cache: PixelCache | None = None
    features: FeatureCache | None = None
    sharded = True

    def __init__(
        self,
        name: str,
        split: str,
        index: Path,
        processors: Processors,
        *,
        captions_per_image: int | None = None,
    ) -> None:
        self.name = name
        self.split = split
        self.index = index
        self.processors = processors
        self.opener = processors.train_open if processors else ImageOpener()
        self.captions_per_image = captions_per_image
        self.files, self.offsets = read_index(index)
        self._handles = Handles(self.files)

    def __len__(self) -> int:
        """Images."""
        return len(self.offsets)

    def drawn(self, index: int, generator: torch.Generator) -> tuple[Image.Image, list[str], int]:
        """Return image `index` (8-bit RGB), its drawn captions, and its id; errors name shard and record."""
        shard, image_start, image_size, text_start, text_size, is_json = self.offsets[index].tolist()
        where = self.where(index)
        text = self._handles.read(shard, text_start, text_size)
        captions, image_id = parse_text(text, index, where, is_json=bool(is_json))
        chosen = draw_captions(captions, self.captions_per_image or 1, generator)
        image = self.opener.decode(self._handles.read(shard, image_start, image_size), where)
        return image, chosen, image_id

    def for_evaluation(self) -> CaptionDataset:
        """Raise ConfigError: records of shards have no references, and are read as they come."""
        raise ConfigError(
            f"datasets.{self.name}: {self.split} is stored as shards, which can be trained on, not evaluated; name a "
            "split with image files"
        )

    @property
    def image_count(self) -> int:
        """Images of the split."""
        return len(self.offsets)

    def image_name(self, number: int) -> str:
        """Return the image's number; which id a record has in a shard is known only while it is read."""
        return f"{self.name} {self.split} {number} ({self.index})"

    def where(self, index: int) -> str:
        """Return the shard of item `index` and its number, for messages."""
        return f"{self.files[self.offsets[index, 0]]}: record {index}"

    def __getstate__(self) -> dict[str, Any]:
        """Travel to worker processes without open files and without the index's bytes."""
        return {**self.__dict__, "_handles": None, "offsets": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.files, self.offsets = read_index(self.index)
        self._handles = Handles(self.files)


class Handles:
    """Open shards, those that were read last: at most a quarter of the files that a process may have open.

    Args:
        files: the shards.
        limit: how many stay open; None asks the system.
    """

    def __init__(self, files: Sequence[Path], limit: int | None = None) -> None:
        self.files = files
        self.limit = limit or max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4, 1)
        self.open: OrderedDict[int, int] = OrderedDict()

    def read(self, shard: int, start: int, size: int) -> bytes:
        """Read bytes of a shard.

        Raises:
            UserError: it does not open.
        """
        if shard in self.open:
            self.open.move_to_end(shard)
        else:
            while len(self.open) >= self.limit:
                os.close(self.open.popitem(last=False)[1])
            try:
                self.open[shard] = os.open(self.files[shard], os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{self.files[shard]}: shard does not open ({error.strerror})") from None
        return os.pread(self.open[shard], size, start)

    def __del__(self) -> None:
        for handle in self.open.values():
            os.close(handle)


def parse_text(content: bytes, index: int, where: str, *, is_json: bool) -> tuple[list[str], int]:
    """Return captions and image number of a record's text member: its id where that is a number, else `index`.

    Raises:
        UserError: it is no text or not JSON, a caption is empty or is not text; `where` is named.
    """
    text = decode(content, where)
    value = parse_json(text, where) if is_json else [line for line in lines(text) if line.strip()]
    record = Record(where, "", value if isinstance(value, dict) else {"captions": value})
    captions = said(record, "captions", "caption")
    image_id = record.fields.get("image_id", index)
    return captions, image_id if type(image_id) is int and 0 <= image_id < IDS_OF_A_DATASET else index


def read_index(path: Path) -> tuple[list[Path], npt.NDArray[np.int64]]:
    """Return the shards' files and the memory-mapped (records, 6) offsets of an index.

    Raises:
        UserError: the index or a shard is missing, or they are not of each other.
    """
    table = path.with_suffix(".npy")
    for file in (path, table):
        if not file.exists():
            raise UserError(f"{file}: shard index is missing; {_MAKE}")
    shards = read_object(path).objects("shards")
    files = [path.parent / shard.text("file") for shard in shards]
    offsets = _offsets(table)
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: shard is missing ({len(missing)} of {len(shards)} are)")
    for file, shard in zip(files, shards, strict=True):
        if "bytes" in shard and shard.get("bytes") != file.stat().st_size:
            raise UserError(f"{file}: shard is not as it was when {path.name} was made; {_MAKE}")
    counts = [shard.get("records") for shard in shards]
    if not all(type(count) is int for count in counts) or sum(counts) != len(offsets):
        raise UserError(f"{path}: {len(offsets)} offsets do not fit the shards' records; {_MAKE}")
    return files, offsets


def _offsets(table: Path) -> npt.NDArray[np.int64]:
    """Return the memory-mapped (records, 6) array of an index."""
    with table.open("rb") as file:
        instead = stand_in(file.read(HEAD))
    if instead is not None:
        raise UserError(f"{table}: is {instead}")
    try:
        offsets: npt.NDArray[np.int64] = np.load(table, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise UserError(f"{table}: damaged ({str(error).splitlines()[0]}); {_MAKE}") from None
    if offsets.ndim != 2 or offsets.shape[1] != COLUMNS or offsets.dtype != np.int64:
        raise UserError(f"{table}: not the offsets of shards; {_MAKE}")
    return offsets


def prepared_records(folder: Path, split: str) -> Iterator[ShardRecord]:
    """Yield the images of a prepared split with all their captions, in the order of its annotation file."""
    records = read_annotations([folder / "annotations" / f"{split}.json"])
    files = ImageFolder(folder / "images")
    for place, group in enumerate(group_by_image(records)):
        first = records[group[0]]
        path = files.path(first.image)
        captions = tuple(records[record].caption for record in group)
        key = first.image_id if isinstance(first.image_id, int) else place
        suffix = path.suffix.lower()
        if suffix not in IMAGE_SUFFIXES:
            suffix = ".jpg"  # a shard knows an image by its name; what it is, its content says
        yield ShardRecord(f"{key:09d}", suffix, path.read_bytes(), captions, first.image_id)


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
    return index_shards([folder / name for name in names], folder / f"{split}{SHARD_INDEX}")


def _finish(file: tarfile.TarFile | None, folder: Path, names: Sequence[str]) -> None:
    if file is not None:
        file.close()
        (folder / f"{names[-1]}.part").replace(folder / names[-1])


def index_shards(files: Sequence[Path], index: Path, left_out: list[str] | None = None) -> Path:
    """Index tar files (written here or elsewhere) that lie beside `index`; returns it.

    Args:
        files: the shards.
        index: where the index goes.
        left_out: gets what is wrong with captions that cannot be read; their records are left out. None: an error.

    Raises:
        UserError: a file is no plain tar file, an image in it has no text beside it, or a text has no captions.
    """
    rows: list[npt.NDArray[np.int64]] = []
    for number, file in enumerate(files):
        found = np.array(list(_members(file, number, left_out)), dtype=np.int64).reshape(-1, COLUMNS)
        rows.append(found)
    if not sum(len(found) for found in rows):
        raise UserError(f"{index}: no records in {len(files)} shards")
    with replacing(index.with_suffix(".npy")) as temporary, temporary.open("wb") as table:
        np.save(table, np.concatenate(rows))
    shards = [
        {"file": file.name, "records": len(found), "bytes": file.stat().st_size}
        for file, found in zip(files, rows, strict=True)
    ]
    write_json(index, {"shards": shards})
    return index


Parts = dict[str, tuple[int, int]]
"""Suffix → (offset, size) of a record's members; all image suffixes are "image"."""


def _members(file: Path, number: int, left_out: list[str] | None) -> Iterator[tuple[int, ...]]:
    """Yield the row of every record of a tar file."""
    open_records: dict[str, Parts] = {}
    last = ""
    try:
        with tarfile.open(file, "r:") as archive, file.open("rb") as raw:

            def rows(key: str) -> list[tuple[int, ...]]:
                """Return the row of a record that has all it needs; none where it is not whole or is left out."""
                parts = open_records.get(key, {})
                if "image" not in parts or len(parts) < 2:
                    return []
                del open_records[key]
                try:
                    return [(number, *_row(raw.fileno(), parts, f"{file}: {key}"))]
                except UserError as error:
                    if left_out is None:
                        raise
                    left_out.append(str(error))
                    return []

            for member in archive:
                archive.members = []  # type: ignore[attr-defined]
                key, suffix = os.path.splitext(member.name)
                suffix = "image" if suffix.lower() in IMAGE_SUFFIXES else suffix.lower()
                if (
                    suffix not in ("image", *TEXT_SUFFIXES)
                    or not member.isfile()
                    or is_system_file(member.name)
                ):
                    continue
                if key != last:
                    yield from rows(last)
                parts, last = open_records.setdefault(key, {}), key
                if suffix in parts:
                    raise UserError(f"{file}: {member.name}: {key} has two members of its kind; keep one")
                parts[suffix] = (member.offset_data, member.size)
            yield from rows(last)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{file}: {_no_tar(file, error)}") from None
    if open_records:
        raise UserError(
            f"{file}: {next(iter(open_records))}: an image and its captions (.json, .txt, .caption or .cap; .cls is a "
            "class) belong together"
        )


def _no_tar(file: Path, error: Exception) -> str:
    """Return why a file cannot be read as a tar file."""
    if not file.is_file():
        return no_file(file)
    with file.open("rb") as content:
        kind = other_kind(content.read(HEAD))
    return f"no plain tar file, but {kind}" if kind else f"no plain tar file ({error})"


def _row(shard: int, parts: Parts, where: str) -> tuple[int, ...]:
    """Offset and size of image and text, and whether the text is JSON; the text is one that can be read."""
    texts = [suffix for suffix in TEXT_SUFFIXES if suffix in parts]
    for suffix in texts:
        is_json, place = suffix == ".json", f"{where}{suffix}"
        content = os.pread(shard, parts[suffix][1], parts[suffix][0])
        if is_json and len(texts) > 1:
            value = parse_json(decode(content, place), place)
            if isinstance(value, dict) and not value.keys() & {"caption", "captions"}:
                continue  # what is known of the image; its captions are in the other text
        parse_text(content, 0, place, is_json=is_json)
        return (*parts["image"], *parts[suffix], int(is_json))
    raise AssertionError("the last text is returned or refused")
