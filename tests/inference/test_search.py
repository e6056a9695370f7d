"""Search: equal to all similarities in double precision; the index holds what is there, whatever happened before."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from bita.errors import UserError
from bita.inference import index as index_module
from bita.inference.aligner import Aligner
from bita.inference.index import Entry, VectorIndex, search
from bita.inference.search import file_items, find, open_index, update
from tests.datasets.makers import write_image
from tests.inference.conftest import Pair


def vectors(count: int, queries: int = 3, width: int = 8, seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, queries, width, generator=generator), dim=-1).half().numpy()


def plain(rows: np.ndarray, text: Tensor, top: int) -> list[tuple[int, float]]:
    scores = (rows.astype(np.float64) @ text.double().numpy()).max(axis=1)
    return [(int(k), float(scores[k])) for k in np.lexsort((np.arange(len(rows)), -scores))[:top]]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 700), top=st.integers(1, 40), seed=st.integers(0, 99), twins=st.booleans())
def test_search_equals_brute_force_in_double_precision(count: int, top: int, seed: int, twins: bool) -> None:
    rows = vectors(count, seed=seed)
    if twins:  # many that differ by less than single precision can tell, and many that do not
        rows = np.tile(rows[:3], (count, 1, 1))[:count]
        rows[::2] = np.nextafter(rows[::2], np.float16(2))
    texts = F.normalize(torch.randn(2, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)
    assert search(rows, texts, top) == [plain(rows, text, top) for text in texts]


def test_rows_that_do_not_count_are_not_found() -> None:
    rows, texts = vectors(600), torch.eye(8)[:1]
    live = np.random.default_rng(0).random(600) < 0.01
    found = search(rows, texts, 50, live)[0]
    assert found == [hit for hit in plain(rows, texts[0], 600) if live[hit[0]]][:50]
    assert len(found) == live.sum() < 50
    assert search(rows, texts, 5, np.zeros(600, bool)) == [[]]
    assert search(rows[:0], texts, 5) == [[]]


def entries(*keys: str, rows: bool = True) -> list[Entry]:
    return [Entry(key, "1 2", "a", row if rows else None) for row, key in enumerate(keys)]


def test_an_index_is_found_again_and_a_run_that_was_killed_loses_only_what_it_had_not_said(
    tmp_path: Path,
) -> None:
    rows = torch.from_numpy(vectors(5)).float()
    index = VectorIndex(tmp_path / "x", "m", 3, 8)
    with index.writing():
        index.add(entries("a", "b"), rows[:2])
        index.add(entries("gone", rows=False))
        index.add(entries("c"), rows[2:3])
    text = torch.eye(8)[:1]
    expected = [("abc"[row], score) for row, score in plain(rows[:3].half().numpy(), text[0], 5)]
    assert index.search(text, 5) == [expected]
    again = VectorIndex(tmp_path / "x", "m", 3, 8)
    assert again.entries == index.entries
    assert again.search(text, 5) == [expected]
    with (tmp_path / "x/vectors.0.f16").open(
        "ab"
    ) as file:  # killed while it wrote a row: vectors without a line
        file.write(b"\1" * 60)
    with (tmp_path / "x/rows.0.jsonl").open("ab") as file:
        file.write(b'{"key": "d", "st')
    third = VectorIndex(tmp_path / "x", "m", 3, 8)
    assert third.entries == index.entries
    with third.writing():
        third.add(entries("d"), rows[3:4])
    last = VectorIndex(tmp_path / "x", "m", 3, 8)
    assert np.array_equal(last.vectors()[last.entries["d"].row], rows[3].half().numpy())
    assert last.search(text, 3)[0][0][1] == plain(rows[:4].half().numpy(), text[0], 1)[0][1]
    os.truncate(tmp_path / "x/vectors.0.f16", 2 * 48)  # a line without its vectors, as after a power failure
    less = VectorIndex(tmp_path / "x", "m", 3, 8)
    assert set(less.entries) == {"a", "b", "gone"}
    with less.writing():
        less.add(entries("e"), rows[4:])  # where the vectors of c lay
    assert VectorIndex(tmp_path / "x", "m", 3, 8).entries == less.entries
    assert set(less.entries) == {"a", "b", "gone", "e"}


def test_two_processes_search_in_one_index_while_one_of_them_writes_it_anew(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for name in ("lock", ".tmp-index.json-1"):  # another process begins it just now
        (tmp_path / "x" / name).touch()
    rows, text = torch.from_numpy(vectors(5)).float(), torch.eye(8)[:1]
    one = VectorIndex(tmp_path / "x", "m", 3, 8)
    with one.writing():
        one.add(entries(*"abcde"), rows)
    expected = one.search(text, 5)
    two = VectorIndex(tmp_path / "x", "m", 3, 8)
    with two.writing():
        two.keep({"a"})
    assert sorted(path.name for path in (tmp_path / "x").glob("vectors*")) == ["vectors.1.f16"]
    assert one.search(text, 5) == expected
    assert [key for key, _ in two.search(text, 5)[0]] == ["a"]


def test_a_disk_that_fills_is_named_and_what_was_said_before_stays(
    tmp_path: Path, little_space: Callable[[int], None]
) -> None:
    rows = torch.from_numpy(vectors(3)).float()
    index = VectorIndex(tmp_path / "x", "m", 3, 8)
    with index.writing():
        index.add(entries("a", "b"), rows[:2])
        for more, given, file in (
            (entries("c"), rows[2:], "vectors.0.f16"),
            (entries("c", rows=False), None, "rows.0.jsonl"),
        ):
            little_space(130)  # two vectors have 96 bytes, two lines some more
            with pytest.raises(OSError, match="File too large") as full:
                index.add(more, given)
            little_space(resource.RLIM_INFINITY)
            assert full.value.filename == str(tmp_path / "x" / file)
    again = VectorIndex(tmp_path / "x", "m", 3, 8)
    assert set(again.entries) == {"a", "b"}
    with again.writing():
        again.add(entries("c"), rows[2:])
    assert VectorIndex(tmp_path / "x", "m", 3, 8).search(torch.eye(8)[:1], 3) == again.search(
        torch.eye(8)[:1], 3
    )
    assert again.entries["c"].row is not None
    assert np.array_equal(again.vectors()[again.entries["c"].row], rows[2].half().numpy())


def test_what_is_forgotten_leaves_the_files_when_it_is_most_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "BLOCK", 2)
    rows = torch.from_numpy(vectors(9)).float()
    index = VectorIndex(tmp_path / "x", "m", 3, 8)
    with index.writing():
        index.add(entries(*"abcdefghi"), rows)
        index.keep(set("acefi"))
        assert index.count == 9
        index.keep(set("cfi"))
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [
        "index.json",
        "lock",
        "rows.1.jsonl",
        "vectors.1.f16",
    ]
    again = VectorIndex(tmp_path / "x", "m", 3, 8)
    assert again.entries == index.entries
    for key in "cfi":
        assert np.array_equal(again.vectors()[again.entries[key].row], rows["abcdefghi".index(key)].half())


def test_another_model_and_other_folders_are_refused(tmp_path: Path) -> None:
    VectorIndex(tmp_path / "x", "m", 3, 8)
    for changes, says in ((("n", 3, 8), "its model is m, not n"), (("m", 4, 8), "its queries is 3, not 4")):
        with pytest.raises(UserError, match=f"x: {says}: it was made by another model; name another --index"):
            VectorIndex(tmp_path / "x", *changes)
    (tmp_path / "y").mkdir()
    (tmp_path / "y/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="a folder of something else"):
        VectorIndex(tmp_path / "y", "m", 3, 8)
    assert [path.name for path in (tmp_path / "y").iterdir()] == ["notes.txt"]
    (tmp_path / "x/index.json").rename(tmp_path / "header")
    with pytest.raises(
        UserError, match=r"x/index\.json: is gone, and the index cannot be read .*; remove the folder"
    ):
        VectorIndex(tmp_path / "x", "m", 3, 8)
    with pytest.raises(
        UserError, match=r"txt/x: cannot be written \(Not a directory\); name another --index"
    ):
        VectorIndex(tmp_path / "y/notes.txt/x", "m", 3, 8)
    for broken in ("{", "[]", "{}"):
        (tmp_path / "x/index.json").write_text(broken)
        with pytest.raises(UserError, match="no header of a search index"):
            VectorIndex(tmp_path / "x", "m", 3, 8)


@pytest.fixture(scope="module")
def aligner(pair: Pair) -> Aligner:
    return Aligner.of(pair.run, "cpu")


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def test_images_are_found_as_the_model_compares_them_and_only_new_ones_are_embedded(
    aligner: Aligner,
    pair: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    embedded: list[int] = []
    plainly = aligner.embed_pixels
    monkeypatch.setattr(
        aligner, "embed_pixels", lambda pixels: embedded.append(len(pixels)) or plainly(pixels)
    )
    folder, kept = tmp_path / "images", tmp_path / "kept"
    for number in range(7):
        write_image(folder / f"sub #{number % 2}/{number}.png", number, (40, 36))

    def refreshed() -> VectorIndex:
        embedded.clear()
        index = open_index(kept, aligner)
        update(index, list(file_items(files(folder), folder)), aligner, batch_size=3)
        return index

    index = refreshed()
    assert embedded == [3, 3, 1]
    scores = pair.captioner.score(files(folder), ["two planes"])[:, 0]
    names = [path.relative_to(folder).as_posix() for path in files(folder)]
    found = find(index, aligner, "two planes", 4)
    assert [key for key, _ in found] == [names[k] for k in scores.argsort(descending=True)[:4]]
    assert [score for _, score in found] == pytest.approx(
        scores.sort(descending=True).values[:4].tolist(), abs=1e-3
    )
    refreshed()
    assert embedded == []
    first = files(folder)[0]
    os.utime(first, ns=(1, 1))  # touched, not changed
    refreshed()
    assert embedded == []
    pair_of = files(folder)[:2]  # of one size and time, then each in the other's place
    contents = [path.read_bytes().ljust(10_000, b"\0") for path in pair_of]
    for order in (contents, contents[::-1]):
        for path, content in zip(pair_of, order, strict=True):
            path.write_bytes(content)
            os.utime(path, ns=(5, 5))
        refreshed()
        assert embedded == [2]
    write_image(first, 99, (40, 36))
    write_image(folder / "new.png", 8, (40, 36))
    files(folder)[2].unlink()
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "link.png").symlink_to("gone")
    index = refreshed()
    (folder / "link.png").unlink()
    assert embedded == [2]
    assert "link.png: No such file" in caplog.text
    assert "passed over" in caplog.text
    assert "broken.png" in caplog.text
    again = pair.captioner.score(first, ["two planes"])
    assert dict(find(index, aligner, "two planes", 9))[names[0]] == pytest.approx(float(again), abs=1e-3)
    assert {key for key, _ in find(index, aligner, "two planes", 9)} == {
        path.relative_to(folder).as_posix() for path in files(folder) if path.name != "broken.png"
    }
    caplog.clear()
    refreshed()
    assert embedded == []
    assert caplog.text == ""  # what is broken is said once
    header = json.loads((kept / "index.json").read_text())
    assert header["model"] == aligner.hash


def test_the_stage_1_of_a_captioning_run_compares_and_where_it_is_gone_that_is_said(
    pair: Pair, tmp_path: Path
) -> None:
    assert Aligner.of(pair.stage1, "cpu").hash == Aligner.of(pair.run, "cpu").hash != pair.captioner.hash
    shutil.copytree(pair.run, tmp_path / "caption/run")
    meta = next((tmp_path / "caption/run/checkpoints").glob("*/meta.json"))
    meta.write_text(meta.read_text().replace(str(pair.stage1), str(tmp_path / "gone")))
    with pytest.raises(
        UserError, match=r"its stage 1, .* is not there; name a run that has one, .*quickstart"
    ):
        Aligner.of(tmp_path / "caption/run", "cpu")
