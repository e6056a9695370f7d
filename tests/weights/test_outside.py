"""Files that no checkpoint holds are known by content: others are refused when going on, warned about when starting."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import bita
from bita.build import build_model
from bita.checkpoint import META_FILE, read_meta
from bita.config.parts import ImageConfig
from bita.config.schema import Config, DatasetConfig
from bita.errors import UserError
from bita.export import export_folder
from bita.files import sha256
from bita.runners.epoch_runner import EpochRunner
from bita.runners.run_dir import open_run_dir
from bita.tasks.captioning import CaptioningTask
from bita.weights import outside as module
from bita.weights.outside import differences, files_of, outside
from tests.weights.test_weights import PARITY, stage_1

sys.path.insert(0, str(Path(__file__).parents[1] / "runners"))
from toy_run import toy_config, toy_dataset

PREFIX = "visual_encoder.trunk."


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """An encoder's file and a language model's folder."""
    folder = tmp_path / "parts"
    shutil.copytree(PARITY / "opt_model", folder / "opt")
    encoder = {n.removeprefix(PREFIX): t for n, t in stage_1().state_dict().items() if n.startswith(PREFIX)}
    torch.save(encoder, folder / "clip.pth")
    return folder


def config(tmp_path: Path, parts: Path, **options: Any) -> Config:
    """A captioning run whose encoder and language model are frozen."""
    frozen: dict[str, Any] = {
        "name": "mine",
        "task": "captioning",
        "model__vit_weights": str(parts / "clip.pth"),
        "model__vit_args": {"embed_dim": 32, "num_heads": 4, "patch_size": 14},
        "model__vit_depth": 2,
        "model__text_model": None,
        "model__freeze_vit": True,
        "model__opt_model": str(parts / "opt"),
        "model__opt_tokenizer": None,
        "model__opt_config": {},
        "model__freeze_lm": True,
    }
    cfg = toy_config(tmp_path / "runs", **frozen | options)
    cfg.datasets = {"mine": DatasetConfig(vis_processor={"eval": ImageConfig(name="bita_image_eval")})}
    return cfg


def train(cfg: Config, tmp_path: Path) -> EpochRunner:
    images = tmp_path / "images"
    datasets = {split: [toy_dataset(images, split, images=2)] for split in ("train", "val", "test")}
    model = build_model(cfg.model)
    runner = EpochRunner(cfg, model, CaptioningTask(cfg), datasets, open_run_dir(cfg))
    runner.train()
    return runner


def another(path: Path) -> None:
    """Other weights in the same file, of the same size and time."""
    status = path.stat()
    state = torch.load(path)
    torch.save({name: tensor + 1 for name, tensor in state.items()}, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def retrain_opt(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)


def other_merges(folder: Path) -> None:
    lines = (folder / "merges.txt").read_text().splitlines()
    (folder / "merges.txt").write_text("\n".join(lines[:-1]) + "\n")


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "encoder": (lambda parts: another(parts / "clip.pth"), "model.vit_weights="),
    "language model": (lambda parts: retrain_opt(parts / "opt"), "model.opt_model="),
    "tokenizer": (lambda parts: other_merges(parts / "opt"), "model.opt_tokenizer="),
}


@pytest.mark.parametrize("part", CHANGES)
def test_going_on_with_other_files_is_refused_by_name(part: str, parts: Path, tmp_path: Path) -> None:
    change, key = CHANGES[part]
    train(config(tmp_path, parts, max_epoch=1), tmp_path)
    folder = tmp_path / "runs/mine/checkpoints/last"
    recorded = read_meta(folder).outside
    assert recorded is not None
    assert recorded["model.vit_weights"]["files"] == {"clip.pth": sha256(parts / "clip.pth")}
    assert {"config.json", "model.safetensors"} == recorded["model.opt_model"]["files"].keys()
    assert "merges.txt" in recorded["model.opt_tokenizer"]["files"]
    change(parts)
    for options in ({"resume": "auto"}, {"resume": str(folder), "name": "other"}):
        with pytest.raises(UserError, match="holds other content") as error:
            train(config(tmp_path, parts, **{"max_epoch": 2} | options), tmp_path)
        assert key in str(error.value)
        assert str(parts) in str(error.value)
        assert "model.init_from=" in str(error.value)
        assert "\n" not in str(error.value)
        others = [other for _, other in CHANGES.values() if other != key]
        assert not any(other in str(error.value) for other in others)


def test_the_same_content_elsewhere_is_the_same(
    parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config(tmp_path, parts, max_epoch=1), tmp_path)
    moved = tmp_path / "moved"
    shutil.copytree(parts, moved)
    (moved / "clip.pth").rename(moved / "ViT-L-14.pth")
    shutil.rmtree(parts)
    cfg = config(tmp_path, moved, max_epoch=2, resume="auto")
    cfg.model.vit_weights = str(moved / "ViT-L-14.pth")
    assert train(cfg, tmp_path).epoch == 2
    assert "content" not in caplog.text


def test_a_run_of_before_goes_on_with_one_note(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(tmp_path, parts, max_epoch=1), tmp_path)
    path = tmp_path / "runs/mine/checkpoints/last" / META_FILE
    meta = json.loads(path.read_text())
    del meta["outside"]
    path.write_text(json.dumps(meta))
    capsys.readouterr()
    another(parts / "clip.pth")
    assert train(config(tmp_path, parts, max_epoch=2, resume="auto"), tmp_path).epoch == 2
    said = capsys.readouterr()
    notes = [line for line in (said.out + said.err).splitlines() if "does not say what" in line]
    assert len(notes) == 1
    assert "model.opt_model, model.opt_tokenizer, model.vit_weights" in notes[0]


def test_starting_from_and_loading_with_other_files_is_warned_about(
    parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config(tmp_path, parts, max_epoch=1), tmp_path)
    run = tmp_path / "runs/mine"
    export_folder(run, tmp_path / "exported")
    with caplog.at_level(logging.WARNING, logger="bita"):
        bita.load(run)
        bita.load(tmp_path / "exported")
        assert "content" not in caplog.text
        another(parts / "clip.pth")
        bita.load(tmp_path / "exported")  # it carries the parts inside
        assert "content" not in caplog.text
        bita.load(run)
        (warning,) = [record.getMessage() for record in caplog.records if "content" in record.getMessage()]
        assert f"model.vit_weights={parts / 'clip.pth'} holds other content than it held" in warning
        caplog.clear()
        build_model(config(tmp_path, parts, model__init_from=str(run)).model)
        assert "model.vit_weights=" in caplog.text
    assert read_meta(tmp_path / "exported").outside == {}


def test_parts_that_the_checkpoint_holds_are_not_outside(parts: Path, tmp_path: Path) -> None:
    cfg = config(tmp_path, parts, model__freeze_vit=False, model__freeze_lm=False).model
    assert outside(build_model(cfg)).keys() == {"model.opt_tokenizer"}


def test_a_file_is_hashed_once(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(config(tmp_path, parts).model)
    outside(model)
    monkeypatch.setattr(module, "sha256", lambda path: pytest.fail(f"{path} hashed again"))
    outside(model)


def test_files_of_shards_packages_and_the_hub(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retrain_opt(parts / "opt")
    names = [file.name for file in files_of(str(parts / "opt"))]
    assert names[:2] == ["config.json", "model.safetensors.index.json"]
    assert len([name for name in names if name.startswith("model-")]) > 1
    hub = tmp_path / "hub/models--facebook--tiny"
    snapshot = hub / "snapshots/00ff"
    shutil.copytree(PARITY / "opt_model", snapshot)
    (hub / "refs").mkdir()
    (hub / "refs/main").write_text("00ff")
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert [file.name for file in files_of("facebook/tiny")] == ["config.json", "model.safetensors"]
    assert files_of("facebook/never-fetched") == []
    assert files_of("/no/such/folder/anywhere") == []
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert files_of(str(tmp_path / "a.gguf"), tokenizer=True) == [tmp_path / "a.gguf"]


def test_differences_name_key_and_files() -> None:
    then = {"model.opt_model": {"source": "a", "files": {"config.json": "1", "model.safetensors": "2"}}}
    now = {"model.opt_model": {"source": "b", "files": {"config.json": "1", "model.safetensors": "3"}}}
    assert differences(then, then) == []
    assert differences(then, {"model.vit_weights": now["model.opt_model"]}) == []
    (words,) = differences(then, now)
    assert words == (
        "model.opt_model=b holds other content (model.safetensors) than a held when the run was trained"
    )
