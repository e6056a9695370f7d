"""Files of captions in every form: read exactly as they were written, or refused in one line; never a traceback.

What is expected is what the file was made of: an independent writer (`json`, `csv`) puts drawn names and captions down.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bita.datasets.annotations import read_annotations, read_ground_truth
from bita.datasets.shards import parse_text
from bita.errors import UserError
from bita.metrics.__main__ import _classes
from bita.metrics.files import read_hypotheses, read_references
from bita.prepare.forms import _captions, _read_coco, _read_table
from bita.prepare.sources import read_karpathy, read_nwpu
from bita.records import decode, read_object, read_records, read_table

Items = list[tuple[str, list[Any]]]
"""Images by name, with their captions."""
COLUMNS = {"image": "image", "caption": "caption", "split": "split"}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")


def grouped(pairs: list[tuple[str, str]]) -> Items:
    found: dict[str, list[Any]] = {}
    for name, caption in pairs:
        found.setdefault(name, []).append(caption)
    return list(found.items())


@dataclass(frozen=True)
class Form:
    """A kind of file: how its content is made of items, as a value for JSON or as text, and which reader reads it."""

    content: Callable[[Items], Any]
    read: Callable[[Path], Items]
    one_caption: bool = False


def karpathy(items: Items) -> Any:
    return {
        "images": [
            {"filename": n, "split": "train", "sentences": [{"raw": c} for c in texts]} for n, texts in items
        ]
    }


def nwpu(items: Items) -> Any:
    keys = ["raw", *(f"raw_{k}" for k in range(1, 9))]
    return {
        "c": [{"filename": n, "split": "test", **dict(zip(keys, texts, strict=False))} for n, texts in items]
    }


def coco(items: Items) -> Any:
    annotations = [{"image_id": k, "caption": c} for k, (_, texts) in enumerate(items) for c in texts]
    images = [{"id": k, "file_name": name} for k, (name, _) in enumerate(items)]
    return {"images": images, "annotations": annotations}


def framework(items: Items) -> Any:
    return [{"image": n, "image_id": k, "caption": c} for k, (n, texts) in enumerate(items) for c in texts]


def by_id(items: Items) -> Any:
    return [{"image_id": name, "caption": c} for name, texts in items for c in texts]


def sources(found: list[Any]) -> Items:
    return [(image.image.removeprefix("c/"), list(image.captions)) for image in found]


def shard(path: Path, *, is_json: bool) -> Items:
    return [("a", parse_text(path.read_bytes(), 0, str(path), is_json=is_json)[0])]


def classes(path: Path) -> Items:
    names: dict[int | str, list[str]] = {name: [] for name in read_object(path).fields}
    found = _classes(argparse.Namespace(classes=path), names) or {}
    return [(str(name), [label]) for name, label in found.items()]


FORMS = {
    "annotations": Form(
        framework, lambda path: grouped([(r.image, r.caption) for r in read_annotations([path])])
    ),
    "lists": Form(
        lambda items: [{"image": n, "image_id": n, "caption": texts} for n, texts in items],
        lambda path: grouped([(r.image, r.caption) for r in read_annotations([path])]),
    ),
    "ground truth": Form(
        lambda items: {"annotations": by_id(items)}, lambda path: list(read_ground_truth(path).items())
    ),
    "coco": Form(coco, lambda path: sources(_read_coco(path, "train"))),
    "karpathy": Form(karpathy, lambda path: sources(read_karpathy(path))),
    "nwpu": Form(nwpu, lambda path: sources(read_nwpu(path))),
    "jsonl": Form(
        lambda items: [{"image": n, "caption": texts} for n, texts in items],
        lambda path: sources(_read_table(path, "jsonl", COLUMNS, "train")),
    ),
    "references": Form(by_id, lambda path: list(read_references(path).items())),
    "hypotheses": Form(
        by_id, lambda path: [(str(n), [text]) for n, text in read_hypotheses(path).items()], one_caption=True
    ),
    "classes": Form(lambda items: {n: texts[0] for n, texts in items}, classes, one_caption=True),
    "shard": Form(lambda items: {"captions": items[0][1]}, lambda path: shard(path, is_json=True)),
}

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
texts |= st.sampled_from(
    [
        'a "wide" river, and a road',
        "a\tb;c",
        "two\nlines",
        "a\r\nb",
        "x\u2028y\x85z\x0b",
        "=1+1",
        "\U0001f6e9",
    ]
)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
items_of = st.lists(
    st.tuples(names.filter(str.strip), st.lists(texts, min_size=1, max_size=4)),
    min_size=1,
    max_size=4,
    unique_by=lambda item: item[0],
)
NO_TEXT = [None, 7, 1.5, True, float("nan"), [["x"]], {"raw": "x"}, [None], "a \ud83d lake", ["a", "\udc00"]]


def fuzz(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Hypothesis with a fixed seed and so many examples."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def fits(form: Form, items: Items) -> Items:
    return [(name, captions[:1]) for name, captions in items] if form.one_caption else items


def as_text(name: str, content: Any, draw: Any) -> str:
    """JSON as programs write it."""
    ascii_only, indent = draw(st.booleans()), draw(st.sampled_from([None, 1]))
    if name in ("jsonl", "references", "hypotheses") and draw(st.booleans()):
        end = draw(st.sampled_from(["\n", "\r\n", "\n\n"]))
        return end.join(json.dumps(record, ensure_ascii=ascii_only) for record in content) + end
    return json.dumps(content, ensure_ascii=ascii_only, indent=indent)


def refused(read: Callable[[Path], object], path: Path) -> str:
    """The message of the error that reading ends in."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(str(path))
    return message


MANY = [12, pytest.param(700, marks=pytest.mark.long)]


@pytest.mark.parametrize("examples", MANY)
@pytest.mark.parametrize("name", FORMS)
def test_json_is_read_exactly(name: str, examples: int, tmp_path: Path) -> None:
    form, path = FORMS[name], tmp_path / "file"

    @fuzz(examples)
    @given(items_of, st.sampled_from(ENCODINGS), st.data())
    def check(items: Items, encoding: str, data: st.DataObject) -> None:
        items = fits(form, items)
        assume(name != "classes" or not any("\0" in label for _, group in items for label in group))
        path.write_bytes(as_text(name, form.content(items), data.draw).encode(encoding))
        assert form.read(path) == ([("a", items[0][1])] if name == "shard" else items)

    check()


@pytest.mark.parametrize("examples", MANY)
@pytest.mark.parametrize("name", FORMS)
def test_a_caption_that_is_no_text_is_refused(name: str, examples: int, tmp_path: Path) -> None:
    form, path = FORMS[name], tmp_path / "file"

    @fuzz(examples)
    @given(items_of, st.sampled_from(NO_TEXT), st.data())
    def check(items: Items, wrong: Any, data: st.DataObject) -> None:
        items = fits(form, items)
        captions = data.draw(st.sampled_from([items[0][1]] if name == "shard" else [t for _, t in items]))
        captions[data.draw(st.integers(0, len(captions) - 1))] = wrong
        assume(not (name == "classes" and wrong == 7))  # a class may be a number
        path.write_text(json.dumps(form.content(items)))
        assert "text" in refused(form.read, path) or "surrogate" in refused(form.read, path)

    check()


@pytest.mark.parametrize("examples", MANY)
@pytest.mark.parametrize("name", [*FORMS, "csv"])
def test_damaged_bytes_are_read_or_refused_in_one_line(name: str, examples: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    table = Form(csv_text, lambda path: sources(_read_table(path, "csv", COLUMNS, "train")))
    form = FORMS.get(name, table)

    @fuzz(examples)
    @given(items_of, st.binary(max_size=3), st.data())
    def check(items: Items, junk: bytes, data: st.DataObject) -> None:
        content = form.content(fits(form, items))
        whole = (content if name == "csv" else as_text(name, content, data.draw)).encode()
        start = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:start] + junk + whole[start + data.draw(st.integers(0, 9)) :])
        try:
            found = form.read(path)
        except UserError:
            refused(form.read, path)
            return
        for image, captions in found:
            assert isinstance(image, str | int)
            assert all(caption.encode() or True for caption in captions)

    check()


def csv_text(items: Items, delimiter: str = ",", **style: Any) -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, **style)
    writer.writerow(["split", " image", "caption"])
    writer.writerows(["train", name, caption] for name, captions in items for caption in captions)
    return file.getvalue()


@pytest.mark.parametrize("examples", [30, pytest.param(700, marks=pytest.mark.long)])
def test_tables_are_read_exactly(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "file"

    @fuzz(examples)
    @given(items_of, st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"]), st.sampled_from(ENCODINGS))
    def check(items: Items, delimiter: str, end: str, encoding: str) -> None:
        assume(not any("\0" in caption for _, captions in items for caption in captions))
        text = csv_text(items, delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
        path.write_bytes(text.encode(encoding))
        assert sources(_read_table(path, "csv", COLUMNS, None)) == items
        rows = [row.fields for row in read_table(path, ["image", "caption"])]
        assert rows == [{"split": "train", "image": n, "caption": c} for n, group in items for c in group]

    check()


@pytest.mark.parametrize("examples", [30, pytest.param(700, marks=pytest.mark.long)])
def test_plain_text_is_a_caption_a_line(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    line = texts.filter(lambda text: not set(text) & set("\r\n\0\ufeff"))

    @fuzz(examples)
    @given(st.lists(line, min_size=1), st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from(ENCODINGS))
    def check(captions: list[str], end: str, encoding: str) -> None:
        path.write_bytes(end.join([*captions, "", " "]).encode(encoding))
        assert _captions(path) == captions
        assert shard(path, is_json=False) == [("a", captions)]

    check()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,caption\na,b,c\n", "line 2: 3 fields, the header has 2; put quotation marks around"),
        (b"image,caption\na,b\n\nc\n", "line 4: 1 fields, the header has 2"),
        (b'image,caption\na,"b\nc"\nd,e,f\n', "line 4: 3 fields"),
        (b'image,caption\na,"b\n', "line 2: not CSV (unexpected end of data)"),
        (
            b"file,caption\na,b\n",
            "line 1: no column 'image'; the header has file, caption; rename one, or name",
        ),
        (b"image,caption,caption\na,b,c\n", "line 1: column 'caption' is there twice"),
        (b"image,caption\na,caf\xe9\n", "line 2: not UTF-8 text (byte 0xe9); save it as UTF-8"),
        (b"image,caption\na,b\0\n", "line 2: holds a NUL character (UTF-16 without a byte-order mark?)"),
        (b"", "line 1: no column 'image'; the header has nothing"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "all.csv"
    path.write_bytes(content)
    assert message in refused(lambda path: read_table(path, ["image", "caption"]), path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('[{"image": "a", "caption": "b", "caption": "c"}]', "key 'caption' is twice in one object"),
        ("[" * 100_000, "nested too deeply"),
        (f'[{{"id": {"9" * 5000}}}]', "a number of thousands of digits"),
        ('{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ('{"a": 1}\n[2]\n', "line 2: wanted an object, found a list"),
        ("[1]", "all.json: record 0: wanted an object, found a number"),
        ("null", "all.json: wanted an object, found null"),
        ('{"a": 1},\n{"a": 2}', "line 1: not JSON (character 9: Extra data)"),
        ('[\n{"a": 1},\n]', "not JSON (line 3: Expecting value)"),
        ('{"a": "x\ty"}', "not JSON (character 9: Invalid control character at)"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "all.json"
    path.write_text(text)
    assert message in refused(read_records, path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", "is a Git LFS pointer"),
        (b"../.git/annex/objects/zk/SHA256E-s1--00.json", "is a git-annex pointer"),
        (b"\xef\xbb\xbf\n<!doctype HTML><title>Sign in</title>", "is an HTML page (Sign in)"),
        (gzip.compress(b"[]", mtime=0), "is compressed (gzip); unpack it"),
        (b"PK\x03\x04\x14\0\xff", "is a zip archive, or a table of Excel"),
        (bytes(100), "is nothing but zeros"),
    ],
    ids=["pointer", "annex", "page", "gzip", "zip", "zeros"],
)
def test_what_stands_in_the_place_of_a_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "all"
    path.write_bytes(content)
    for read in (
        read_records,
        read_object,
        read_hypotheses,
        _captions,
        lambda path: read_table(path, ["image"]),
    ):
        assert refused(read, path).startswith(f"{path}: {said}")


def test_a_field_that_is_missing_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    path.write_text('{"image_id": 1, "text": "a river"}')
    assert refused(read_hypotheses, path) == (
        f"{path}: field 'caption' is missing; there are 'image_id', 'text'"
    )
    path.write_text('{"image": "a.png", "caption": 7}')
    said = refused(lambda path: _read_table(path, "jsonl", COLUMNS, "train"), path)
    assert said == f"{path}: (a.png): field 'caption' must be text, not a number"


def test_a_field_of_a_table_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    path.write_text(f"image,thumbnail\na.png,{'x' * 300_000}\n")
    assert len(read_table(path, ["image"])[0].text("thumbnail")) == 300_000


def test_a_folder_and_a_missing_file_say_so(tmp_path: Path) -> None:
    assert refused(read_records, tmp_path).endswith(": is a folder; name a file")
    assert refused(read_records, tmp_path / "gone").endswith("gone: no such file")


def test_marks_of_encodings_are_no_part_of_a_text() -> None:
    assert [decode("\ufeffé".encode(name), "x") for name in ("utf-8", "utf-16-le", "utf-16-be")] == ["é"] * 3
    assert decode("é".encode("utf-16"), "x") == decode("é".encode("utf-32"), "x") == "é"
