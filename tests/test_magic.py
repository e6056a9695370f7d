"""What a file is instead of weights is said in one line, whatever its name."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bita.build import build_model
from bita.checkpoint import weights_problem
from bita.errors import UserError
from bita.export import config_of
from bita.magic import why_not_weights
from bita.models.language.decoder import load_language_model
from bita.models.language.tokenizers import load_tokenizer
from bita.weights.files import WeightFile
from tests.weights.test_weights import small

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1710639143\n"
INSTEAD: dict[str, tuple[bytes, str]] = {
    "lfs": (LFS, r"a Git LFS pointer, not the file itself; fetch it with: git lfs pull"),
    "annex": (b"../../.git/annex/objects/zk/SHA256E-s1--00.pth\n", r"git annex get"),
    "html": (
        b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>",
        r"an HTML page \(Sign in\)",
    ),
    "html in capitals": (b"\xef\xbb\xbf<HTML><body>Quota exceeded</body>", r"an HTML page \("),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', r"XML answer .*AccessDenied"),
    "json": (b'{"error": "not found"}', r"JSON: \{\"error\""),
    "text": ("nicht gefunden: müßig\n".encode(), r"text: 'nicht gefunden"),
    "utf-16": ("not here".encode("utf-16"), r"text: 'not here'"),
    "gzip": (gzip.compress(b"x" * 100), r"compressed \(gzip\); unpack it"),
    "xz": (b"\xfd7zXZ\0" + bytes(range(40)), r"compressed \(xz\)"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(range(40)), r"compressed \(zstd\)"),
    "empty": (b"", r"empty; fetch it again"),
    "blank": (b" \n\n", r"blank \(3 bytes\)"),
    "zeros": (bytes(5000), r"nothing but zeros \(5000 bytes\); its download broke off"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(range(64)), r"a GGUF file .*model\.opt_model"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(range(64)), r"an HDF5 file; if it is of Keras"),
    "npy": (b"\x93NUMPY\x01\0" + bytes(range(64)), r"one NumPy array"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(range(64)), r"a PNG image"),
    "bigtiff": (b"II+\0\x08\0\0\0" + bytes(range(64)), r"a TIFF image"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.0.0:\x80\x01" + bytes(64), r"an ONNX model"),
    "tensorflow index": (bytes(range(1, 90)) + bytes.fromhex("57fb808b247547db"), r"a TensorFlow checkpoint"),
    "tensorflow list": (b'model_checkpoint_path: "bert_model.ckpt"\n', r"a TensorFlow checkpoint"),
    "safetensors cut in its header": (
        struct.pack("<Q", 5000) + b'{"a":',
        r"cut off: safetensors of 13 bytes",
    ),
    "zip cut": (b"PK\x03\x04" + bytes(range(200)), r"cut off: a zip archive \(204 bytes\)"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin", ".ckpt", ""])
@pytest.mark.parametrize("name", INSTEAD)
def test_the_real_reason_is_one_line(name: str, suffix: str, tmp_path: Path) -> None:
    content, reason = INSTEAD[name]
    file = tmp_path / f"file{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        WeightFile(file)
    assert str(error.value).startswith(f"weights {file}: ")
    assert "\n" not in str(error.value)
    assert "could run code" not in str(error.value)


def test_folders_and_links(tmp_path: Path) -> None:
    def problem(*names: str, content: bytes = b"x") -> str:
        folder = tmp_path / "-".join(names or ("none",))
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(content)
        return str(weights_problem(folder))

    assert problem() == "not a weights file, but an empty folder"
    assert "dcp_to_torch" in problem(".metadata", "__0_0.distcp")
    assert "TensorFlow" in problem("bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001")
    assert "Flax" in problem("config.json", "flax_model.msgpack")
    assert "a folder with epoch_3.pth, log.txt; name the file" in problem("epoch_3.pth", "log.txt")
    assert "git lfs pull" in problem("config.json", "model.safetensors", content=LFS)
    (tmp_path / "blob.pth").symlink_to("../../blobs/00")
    assert "a link to ../../blobs/00, which is not there" in str(weights_problem(tmp_path / "blob.pth"))
    assert weights_problem(tmp_path / "absent.pth") == "no such file or folder"
    torch.save({"a": torch.ones(1)}, tmp_path / "good")
    assert weights_problem(tmp_path / "good") is None


def test_a_file_cut_anywhere_is_one_line(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {name: torch.arange(40.0) for name in ("a.weight", "b.weight")}
    save_file(state, tmp_path / "whole.safetensors")
    torch.save(state, tmp_path / "whole.pth")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for whole in sorted(tmp_path.glob("*.*")):
        content = whole.read_bytes()
        for length in range(0, len(content), max(len(content) // 40, 1)):
            (tmp_path / "cut").write_bytes(content[:length])
            with pytest.raises(UserError) as error:
                dict(WeightFile(tmp_path / "cut"))
            assert "\n" not in str(error.value)


STARTS = [b"", b"\x80\x02", b"PK\x03\x04", b"{", b"\x08\x07\x12", b"<"]


@settings(max_examples=400, deadline=None)
@given(
    content=st.binary(max_size=600),
    start=st.sampled_from(STARTS),
)
def test_no_bytes_give_a_traceback(
    content: bytes, start: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "drawn.pth"
    file.write_bytes(start + content)
    why_not_weights(file)
    with pytest.raises(UserError) as error:
        WeightFile(file)
    assert "\n" not in str(error.value)


def test_an_index_of_shards_may_have_any_name(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "one.bin")
    (tmp_path / "shards.json").write_text(json.dumps({"weight_map": {"module.a": "one.bin"}}))
    with pytest.raises(UserError, match=r"module\.a should be in one\.bin and is not"):
        dict(WeightFile(tmp_path / "shards.json"))
    (tmp_path / "shards.json").write_text(json.dumps({"weight_map": {"a": "one.bin"}}))
    assert torch.equal(WeightFile(tmp_path / "shards.json")["a"], torch.ones(2))


def test_every_key_that_names_weights_says_so(tmp_path: Path) -> None:
    pointer = tmp_path / "clip.pth"
    pointer.write_bytes(LFS)
    for key in ("vit_weights", "init_from"):
        with pytest.raises(UserError, match="git lfs pull"):
            build_model(small(**{key: str(pointer)}))
    with pytest.raises(UserError, match=rf"checkpoint {pointer}: not a weights file, but a Git LFS pointer"):
        config_of(pointer)
    pointer.unlink()
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes(LFS)
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    with pytest.raises(UserError, match=r"model\.safetensors is a Git LFS pointer"):
        load_language_model(str(tmp_path))
    with pytest.raises(UserError, match=r"is a Git LFS pointer"):
        load_tokenizer("model.opt_tokenizer", str(tmp_path), required=True)


def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "river"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (tmp_path / "model.safetensors").write_bytes(LFS)  # not needed
    tokenizer = load_tokenizer("model.text_tokenizer", str(tmp_path), required=True)
    assert tokenizer is not None
    assert len(tokenizer) == len(words)
    (tmp_path / "vocab.txt").write_bytes(LFS)
    with pytest.raises(UserError, match=r"model\.text_tokenizer=.*: vocab\.txt is a Git LFS pointer"):
        load_tokenizer("model.text_tokenizer", str(tmp_path), required=True)
    for change in (lambda path: path.write_bytes(b""), Path.unlink):
        change(tmp_path / "vocab.txt")
        with pytest.raises(
            UserError, match=r"a tokenizer without words; its vocabulary .* is missing or empty"
        ):
            load_tokenizer("model.text_tokenizer", str(tmp_path), required=True)
