"""What a file of weights is and what lies beside them in it: objects, pickled models, code, archives."""

from __future__ import annotations

import argparse
import collections
import datetime
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from bita.build import build_model
from bita.errors import UserError
from bita.models.base import BitaModel
from bita.weights.load import load_bert, load_checkpoint, load_vision
from tests.weights.clip_files import State
from tests.weights.conftest import put
from tests.weights.test_weights import equal, small, stage_1

# What lies beside the weights in a file


class Config:
    """Some trainer's own class."""

    def __init__(self) -> None:
        self.lr = 1.0


class EasyDict(dict[str, Any]):
    """A kind of dictionary that packages bring."""


BESIDE: dict[str, Callable[[], Any]] = {
    "argparse": lambda: argparse.Namespace(lr=1e-3, out=Path("x")),
    "omegaconf": lambda: OmegaConf.create({"model": {"name": "x", "sizes": [1, 2]}}),
    "numpy scalar": lambda: np.float64(0.5),
    "numpy array": lambda: np.arange(3),
    "a class of one's own": Config,
    "a kind of dictionary": lambda: EasyDict(a=1, b={"c": 2}),
    "dates and paths": lambda: {"at": datetime.datetime(2024, 1, 1), "in": Path("/x")},
    "default dictionary": lambda: collections.defaultdict(list, {"a": [1]}),
    "set and complex": lambda: ({1, 2}, 1j, frozenset({3}), slice(1)),
    "type": lambda: np.float32,
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", BESIDE)
def test_objects_beside_the_weights_do_not_hinder(
    name: str, legacy: bool, source: BitaModel, encoder: State, tmp_path: Path
) -> None:
    content = {"args": BESIDE[name](), "model": encoder, "epoch": 3}
    torch.save(content, tmp_path / "file.pt", _use_new_zipfile_serialization=not legacy)
    model = stage_1()
    load_vision(model, tmp_path / "file.pt")
    assert equal(model, source, "visual_encoder.")


def test_a_kind_of_dictionary_round_the_weights_is_read(
    source: BitaModel, encoder: State, tmp_path: Path
) -> None:
    torch.save(EasyDict(model=EasyDict(encoder)), tmp_path / "file.pt")
    model = stage_1()
    load_vision(model, tmp_path / "file.pt")
    assert equal(model, source, "visual_encoder.")


def test_a_model_that_was_pickled_whole_is_read_without_its_code(source: BitaModel, tmp_path: Path) -> None:
    torch.save({"net": nn.DataParallel(source.visual_encoder)}, tmp_path / "file.pt")
    model = stage_1()
    assert load_vision(model, tmp_path / "file.pt").place == "net.module.trunk."
    assert equal(model, source, "visual_encoder.")


def test_a_plain_pickle_is_read(source: BitaModel, encoder: State, tmp_path: Path) -> None:
    for content in (encoder, {"model": {n: t.numpy() for n, t in encoder.items()}, "by": "someone"}):
        (tmp_path / "file.pkl").write_bytes(pickle.dumps(content))
        model = stage_1()
        load_vision(model, tmp_path / "file.pkl")
        assert equal(model, source, "visual_encoder.")


class Call:
    """Pickled, it asks for a function to be called."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("dumped", [torch.save, None], ids=["torch", "pickle"])
def test_what_could_run_code_is_refused_by_its_name(
    legacy: bool, dumped: Any, encoder: State, tmp_path: Path
) -> None:
    import os
    import subprocess

    ran = tmp_path / "ran"
    calls = {
        "posix.system": Call(os.system, f"touch {ran}"),
        "builtins.eval": Call(eval, f"open({str(ran)!r}, 'w')"),
        "builtins.getattr": Call(getattr, ran, "touch"),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(ran)]),
    }
    for name, call in calls.items():
        content = {"model": encoder, "args": argparse.Namespace(a=call)}
        if dumped is None:
            (tmp_path / "evil.pth").write_bytes(pickle.dumps(content))
        else:
            torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(
            UserError, match=f"refused, since it asks for {name}, and .*could run code"
        ) as error:
            load_vision(stage_1(), tmp_path / "evil.pth")
        assert "torch.save(model.state_dict(), FILE)" in str(error.value)
        assert not ran.exists()


# What a file is, whatever it is called


def test_the_name_of_a_file_decides_nothing(source: BitaModel, encoder: State, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(encoder, tmp_path / "really_safetensors.pth")
    torch.save(encoder, tmp_path / "really_torch.safetensors")
    torch.save(encoder, tmp_path / "really_a_zip.pth.tar")
    torch.save(encoder, tmp_path / "no_suffix")
    for file in tmp_path.iterdir():
        model = build_model(small(vit_weights=str(file)))
        assert equal(model, source, "visual_encoder.")


def test_bert_from_a_file_in_wrappers(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    bert = BertForMaskedLM(BertConfig(**sizes, vocab_size=121, max_position_embeddings=40))
    plain = bert.state_dict()
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in plain.items()
    }
    bare = {n.removeprefix("bert."): t for n, t in plain.items() if n.startswith("bert.")}
    bert.save_pretrained(tmp_path / "folder")
    torch.save({"state_dict": put("module.", plain)}, tmp_path / "wrapped.pth")
    torch.save(old, tmp_path / "old.bin")
    torch.save(put("model.", bare), tmp_path / "bare.pth")
    for name in ("folder", "wrapped.pth", "old.bin", "bare.pth"):
        model = stage_1()
        load_bert(model, str(tmp_path / name))
        own, theirs = (
            model.bridge.layers[1].query_ffn.norm.weight,
            bert.bert.encoder.layer[1].output.LayerNorm.weight,
        )
        assert torch.equal(own, theirs)
        assert torch.equal(
            model.bridge.word_embedding.weight[:-1], bert.bert.embeddings.word_embeddings.weight
        )
    torch.save({"x": torch.ones(2)}, tmp_path / "no.pth")
    with pytest.raises(UserError, match="holds no BERT"):
        load_bert(stage_1(), str(tmp_path / "no.pth"))


def write_tar(path: Path, inside: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(inside, arcname=inside.name)


def write_zip(path: Path, inside: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inside, arcname=inside.name)


@pytest.mark.parametrize("make", [write_tar, write_zip])
def test_an_archive_says_what_is_in_it(
    make: Callable[[Path, Path], None], encoder: State, tmp_path: Path
) -> None:
    torch.save(encoder, tmp_path / "epoch_20.pt")
    make(tmp_path / "file.pth", tmp_path / "epoch_20.pt")
    with pytest.raises(UserError, match=r"archive of epoch_20\.pt; unpack it"):
        load_checkpoint(stage_1(), tmp_path / "file.pth")
