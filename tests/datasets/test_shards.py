"""Shards: every record once over ranks, workers and resumes; captions, messages, flat memory."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import resource
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from bita.config.run import RunConfig
from bita.config.schema import BuildInfo, DatasetConfig, SplitConfig
from bita.datasets.builders import Needs, build_dataset
from bita.datasets.captions import CaptionDataset
from bita.datasets.loaders import CHUNK, WINDOW, EpochSampler, TrainLoader
from bita.datasets.shards import Handles, ShardRecord, write_shards
from bita.errors import ConfigError, UserError
from bita.processors.rgb import ImageOpener
from scripts.make_shards import main
from tests.datasets.makers import entry, env, prepared


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
        file, "JPEG"
    )
    return file.getvalue()


def synthetic(count: int) -> Iterator[ShardRecord]:
    image = picture(0)
    for number in range(count):
        yield ShardRecord(f"{number:09d}", ".jpg", image, (f"record {number}",), number)


def build(root: Path, index: str, **options: object) -> CaptionDataset:
    info = BuildInfo({"train": SplitConfig(storage=index), "test": SplitConfig(storage=index)})
    cfg = DatasetConfig(build_info=info, **options)  # type: ignore[arg-type]
    return build_dataset("corpus", cfg, env(root), "train", train=True, needs=Needs(image_size=8))


def run(**options: int) -> RunConfig:
    return RunConfig(**{"batch_size_train": 10, "num_workers": 0, **options})  # type: ignore[arg-type]


def ids(loader: object) -> list[int]:
    return [image_id for batch in loader for image_id in batch["image_id"]]  # type: ignore[attr-defined]


def test_a_packed_split_gives_the_pictures_and_captions_of_its_files(tmp_path: Path) -> None:
    prepared(tmp_path / "toy")
    assert main(["pack", str(tmp_path / "toy"), "train", str(tmp_path / "s"), "--per-shard", "5"]) == 0
    assert sorted(path.name for path in (tmp_path / "s").glob("*.tar")) == [
        f"train-00000{k}.tar" for k in range(3)
    ]
    shards = build(tmp_path, "s/train.shards.json", captions_per_image=5)
    files = build_dataset(
        "toy",
        entry(captions_per_image=5),
        env(tmp_path / "toy"),
        "train",
        train=True,
        needs=Needs(image_size=8),
    )
    assert len(shards) == len(files) == 12
    for index in range(12):
        image, captions, image_id = shards.drawn(index, torch.Generator().manual_seed(index))
        expected = files.drawn(index, torch.Generator().manual_seed(index))
        assert (image.tobytes(), captions, image_id) == (expected[0].tobytes(), expected[1], expected[2])


def test_an_image_is_packed_whatever_its_name(tmp_path: Path) -> None:
    prepared(tmp_path / "toy")
    rows = json.loads((tmp_path / "toy/annotations/train.json").read_text())
    first = rows[0]["image"]
    (tmp_path / "toy/images" / first).rename(tmp_path / "toy/images/b.dat")
    rows = [row | {"image": "b.dat"} if row["image"] == first else row for row in rows]
    (tmp_path / "toy/annotations/train.json").write_text(json.dumps(rows))
    assert main(["pack", str(tmp_path / "toy"), "train", str(tmp_path / "s")]) == 0
    assert len(build(tmp_path, "s/train.shards.json")) == len({row["image"] for row in rows})


def test_stopped_after_a_thousand_records_and_resumed_every_record_is_seen_once(tmp_path: Path) -> None:
    write_shards(synthetic(2500), tmp_path, "train", 300)
    dataset = build(tmp_path, "train.shards.json")
    first = iter(TrainLoader([dataset], run(num_workers=2)))
    seen = [image_id for _ in range(100) for image_id in next(first)["image_id"]]
    later = TrainLoader([dataset], run(num_workers=1))
    later.set_epoch(0, 100)
    seen += ids(later)
    assert Counter(seen) == dict.fromkeys(range(2500), 1)
    assert sum(abs(a - b) > 1 for a, b in itertools.pairwise(seen)) > 2000


def test_two_ranks_of_two_workers_see_each_record_once(tmp_path: Path) -> None:
    write_shards(synthetic(1200), tmp_path, "train", 250)
    dataset = build(tmp_path, "train.shards.json")
    shares = [ids(TrainLoader([dataset], run(num_workers=2), rank=rank, world_size=2)) for rank in range(2)]
    assert Counter(shares[0] + shares[1]) == dict.fromkeys(range(1200), 1)
    assert len(shares[0]) == len(shares[1])
    assert shares[0] == ids(TrainLoader([dataset], run(), rank=0, world_size=2))


def test_the_order_of_shards_keeps_neighbours_together_and_changes_with_the_epoch() -> None:
    sampler = EpochSampler([50_000], None, 1, 64, chunk=CHUNK)
    order = sampler.order()
    assert torch.equal(order.sort().values, torch.arange(50_000))
    window = order[: CHUNK * WINDOW]
    assert len((window // CHUNK).unique()) == WINDOW
    sampler.epoch = 1
    assert not torch.equal(order, sampler.order())


def test_shards_made_elsewhere_are_indexed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(tmp_path / "part.tar", "w") as file:
        for name, content in (
            ("a.txt", b"A harbour"),
            ("a.jpg", picture(1)),
            ("b.jpg", picture(2)),
            ("b.json", b""),
            ("b.txt", b"as img2dataset writes it"),
        ):
            content = content or json.dumps({"caption": "A river", "image_id": 7}).encode()
            member = tarfile.TarInfo(f"{'long/' * 30}{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    assert main(["index", str(tmp_path / "part.shards.json"), str(tmp_path / "part.tar")]) == 0
    assert "2 images in 1 shards" in capsys.readouterr().out
    dataset = build(tmp_path, "part.shards.json")
    drawn = [dataset.drawn(index, torch.Generator())[1:] for index in range(2)]
    assert drawn == [(["A harbour"], 0), (["A river"], 7)]


def pack(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file made elsewhere."""
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("texts", "captions"),
    [
        ({"a.txt": b"one river\r\n\r\ntwo rivers\n"}, ["one river", "two rivers"]),
        ({"a.txt": '\ufeffa "caf\xe9" {not JSON}'.encode()}, ['a "caf\xe9" {not JSON}']),
        ({"a.txt": b'{"caption": "as it stands"}'}, ['{"caption": "as it stands"}']),
        ({"a.caption": b"a lake"}, ["a lake"]),
        ({"a.cap": b"a lake", "a.cls": b"7"}, ["a lake"]),
        ({"a.json": b'["a lake", "a pond"]'}, ["a lake", "a pond"]),
        ({"a.json": b'"a lake"'}, ["a lake"]),
        ({"a.JSON": b'{"captions": "a lake"}'}, ["a lake"]),
        ({"a.json": b'{"caption": ["a lake", "a pond"]}'}, ["a lake", "a pond"]),
        ({"a.json": b'{"width": 8}', "a.txt": b"a lake"}, ["a lake"]),
        (
            {"a.json": '{"caption": "a lake"}'.encode("utf-16"), "._a.json": b"\0", "x/.DS_Store": b""},
            ["a lake"],
        ),
    ],
)
def test_captions_in_their_shapes(tmp_path: Path, texts: dict[str, bytes], captions: list[str]) -> None:
    pack(tmp_path / "part.tar", {"a.jpg": picture(1), "._a.jpg": b"", **texts})
    assert main(["index", str(tmp_path / "part.shards.json"), str(tmp_path / "part.tar")]) == 0
    dataset = build(tmp_path, "part.shards.json", captions_per_image=len(captions))
    assert sorted(dataset.drawn(0, torch.Generator())[1]) == sorted(captions)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"a.json": b'{"caption": null}'}, "a.json: field 'caption' must be text, not null"),
        (
            {"a.json": b'{"captions": ["a", 7]}'},
            "a.json: field 'captions', caption 2 must be text, not a number",
        ),
        ({"a.json": b'{"caption": "\\ud83d"}'}, "a.json: field 'caption' holds half of a surrogate pair"),
        ({"a.json": b"{"}, "a.json: not JSON"),
        ({"a.json": b"7"}, "a.json: field 'captions' must be text, not a number"),
        ({"a.json": b'{"width": 8}'}, "a.json: field 'captions' is missing"),
        ({"a.txt": b" \n"}, "a.txt: caption is empty"),
        ({"a.txt": b"caf\xe9"}, "a.txt: line 1: not UTF-8 text (byte 0xe9); save it as UTF-8"),
        (
            {"a.cls": b"7"},
            "a: an image and its captions (.json, .txt, .caption or .cap; .cls is a class) belong",
        ),
        ({"a.txt": b"a", "a.png": b""}, "a.png: a has two members of its kind; keep one"),
    ],
)
def test_captions_that_cannot_be_read_are_found_when_the_index_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], texts: dict[str, bytes], message: str
) -> None:
    sound = {"b.jpg": picture(2), "b.txt": b"a road"}
    pack(tmp_path / "part.tar", {"a.jpg": picture(1), **texts, **sound})
    command = ["index", str(tmp_path / "part.shards.json"), str(tmp_path / "part.tar")]
    assert main(command) == 1
    printed = capsys.readouterr().err
    assert f"part.tar: {message}" in printed
    assert printed.count("\n") == 1
    if "belong" not in message and "two members" not in message:
        assert main([*command, "--leave-out"]) == 0
        assert f"left out: {tmp_path}/part.tar: {message}" in capsys.readouterr().out
        assert build(tmp_path, "part.shards.json").drawn(0, torch.Generator())[1] == ["a road"]


def test_what_is_wrong_with_shards_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"train\.shards\.json is missing"):
        build(tmp_path, "train.shards.json")
    write_shards(
        [*synthetic(3), ShardRecord("x", ".jpg", b"broken", ("a caption",), 3)], tmp_path, "train", 2
    )
    dataset = build(tmp_path, "train.shards.json")
    with pytest.raises(UserError, match=r"train-000001\.tar: record 3: image does not open"):
        list(TrainLoader([dataset], run(batch_size_train=4, num_workers=1)))
    (tmp_path / "train-000000.tar").rename(tmp_path / "elsewhere.tar")
    with pytest.raises(UserError, match=r"train-000000\.tar: shard is missing \(1 of 2 are\)"):
        build(tmp_path, "train.shards.json")
    (tmp_path / "no.tar").write_bytes(b"no tar file at all")
    assert main(["index", str(tmp_path / "x.shards.json"), str(tmp_path / "no.tar")]) == 1
    assert "no.tar: no plain tar file" in capsys.readouterr().err


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"


def test_an_index_and_its_shards_are_what_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(synthetic(4), tmp_path, "train", 4)
    index, table, shard = (tmp_path / f"train{end}" for end in (".shards.json", ".shards.npy", "-000000.tar"))
    for file, content, message in (
        (index, LFS, "is a Git LFS pointer, not the file itself; fetch it with: git lfs pull"),
        (index, b"[]", "wanted an object, found a list"),
        (index, b'{"shards": [{"file": "train-000000.tar", "records": "4"}]}', "4 offsets do not fit"),
        (table, LFS, "is a Git LFS pointer"),
        (table, table.read_bytes()[:-8], "damaged (mmap length is greater than file size)"),
        (table, b"", "damaged ("),
        (shard, shard.read_bytes() + bytes(10240), "shard is not as it was when train.shards.json was made"),
    ):
        before = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(UserError) as caught:
            build(tmp_path, "train.shards.json")
        assert str(caught.value).startswith(f"{file}: {message}")
        file.write_bytes(before)
    content = json.loads(index.read_text())
    del content["shards"][0]["bytes"]  # as earlier versions wrote it
    index.write_text(json.dumps(content))
    assert len(build(tmp_path, "train.shards.json")) == 4
    (tmp_path / "x.tar").write_bytes(gzip.compress(shard.read_bytes()))
    (tmp_path / "y.tar").write_bytes(LFS)
    (tmp_path / "z.tar").mkdir()
    for name, message in (
        ("x", "no plain tar file, but compressed (gzip); unpack it"),
        ("y", "no plain tar file, but a Git LFS pointer"),
        ("z", "is a folder; name a file"),
        ("gone", "no such file"),
    ):
        assert main(["index", str(tmp_path / "x.shards.json"), str(tmp_path / f"{name}.tar")]) == 1
        assert f"{name}.tar: {message}" in capsys.readouterr().err


def test_shards_are_for_training_only(tmp_path: Path) -> None:
    write_shards(synthetic(3), tmp_path, "test", 2)
    info = BuildInfo({"test": SplitConfig(storage="test.shards.json")})
    cfg = DatasetConfig(build_info=info)
    with pytest.raises(ConfigError, match="shards are for training, one index a split, not for test"):
        build_dataset("corpus", cfg, env(tmp_path), "test", train=False)


@pytest.mark.long
def test_forty_thousand_records_stream_with_flat_memory(tmp_path: Path) -> None:
    write_shards(synthetic(40_000), tmp_path, "train", 4_000)
    loader = TrainLoader([build(tmp_path, "train.shards.json")], run(batch_size_train=500))
    peaks, seen = [], set()
    for step, batch in enumerate(loader):
        seen.update(batch["image_id"])
        if step in (8, 79):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert len(seen) == 40_000
    assert peaks[1] - peaks[0] < 40_000, "kilobytes gained between 4,500 and 40,000 records"


def test_open_shards_are_those_that_were_read_last(tmp_path: Path) -> None:
    write_shards(synthetic(60), tmp_path, "train", 1)
    dataset = build(tmp_path, "train.shards.json")
    for index in [*range(60)] * 2:
        dataset.drawn(index, torch.Generator())
    assert len(dataset._handles.open) == 60  # type: ignore[attr-defined]
    handles = Handles([tmp_path / f"train-{k:06d}.tar" for k in range(4)], limit=2)
    for shard in (0, 1, 0, 2):
        assert handles.read(shard, 0, 9) == f"{shard:09d}".encode()
    assert list(handles.open) == [0, 2]


def test_shards_take_every_option_of_a_folder(tmp_path: Path) -> None:
    scene = np.random.default_rng(0).integers(0, 3000, (30, 40, 5)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", scene, photometric="minisblack", planarconfig="contig")
    large = io.BytesIO()
    Image.effect_noise((800, 400), 90).save(large, "JPEG")
    contents = [(tmp_path / "x.tif").read_bytes(), large.getvalue()]
    records = [ShardRecord(str(n), ".tif", content, ("a field",), n) for n, content in enumerate(contents)]
    write_shards(records, tmp_path, "train", 9)
    deep = build(tmp_path, "train.shards.json", bands=[4, 3, 2]).drawn(0, torch.Generator())[0]
    assert deep.tobytes() == ImageOpener(bands=(4, 3, 2)).open(tmp_path / "x.tif").tobytes()
    small = build(tmp_path, "train.shards.json", jpeg_draft=True).drawn(1, torch.Generator())[0]
    assert small.size == (100, 50)
