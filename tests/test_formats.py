"""Runs of every format that there was load, caption, export and go on, for ever.

`tests/fixtures/runs/format_N` holds what the last version of format N wrote: a stage-1 run, a captioning run that
started from it, its export, and what that wrote under some images. Weights were shaken, so that captions differ.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import bita
from bita import build
from bita.checkpoint import FORMAT, META_FILE, read_meta, verify
from bita.config import formats
from bita.config.formats import upgraded
from bita.config.load import config_from_dict, config_to_dict, load_config
from bita.errors import ConfigError, UserError
from bita.export import config_of, export_folder, export_published
from bita.runners.resume import since_checkpoint

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "tests/fixtures/runs"
FORMATS = pytest.mark.parametrize("folder", sorted(RUNS.iterdir()), ids=lambda folder: folder.name)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded runs name tokenizers by relative paths."""
    monkeypatch.chdir(ROOT)


def captions(model: Path, folder: Path) -> dict[str, Any]:
    captioner = bita.load(model, device="cpu")
    return {image.name: str(captioner.caption(image)) for image in sorted((folder / "images").iterdir())}


@FORMATS
def test_a_recorded_run_captions_and_exports_as_it_did(folder: Path, tmp_path: Path) -> None:
    recorded = json.loads((folder / "captions.json").read_text())
    assert len(set(recorded.values())) > 1
    assert captions(folder / "caption", folder) == recorded
    assert captions(folder / "exported", folder) == recorded
    export_folder(folder / "caption", tmp_path / "out")
    export_published(folder / "exported", tmp_path / "out.pth")
    assert captions(tmp_path / "out", folder) == recorded
    assert verify(tmp_path / "out").format == FORMAT


@FORMATS
def test_a_recorded_stage_1_run_is_loaded_and_starts_stage_2(folder: Path) -> None:
    first = build.build_model(config_of(folder / "stage1").model)
    cfg = config_of(folder / "caption").model
    cfg.init_from = str(folder / "stage1")
    second = build.build_model(cfg)
    assert torch.equal(second.query_tokens, first.query_tokens)


@FORMATS
@pytest.mark.parametrize("stage", ["stage1", "caption"])
def test_a_recorded_run_can_be_gone_on_with(folder: Path, stage: str) -> None:
    """Its configuration, read again as a project file, differs in nothing that decides a step."""
    cfg = load_config(folder / stage / "config.yaml", need_files=False)
    assert since_checkpoint(read_meta(folder / stage / "checkpoints/epoch_0001").config, cfg) == []


def test_a_format_is_recorded_before_the_next_begins() -> None:
    assert {path.name for path in RUNS.iterdir()} == {f"format_{n}" for n in range(1, FORMAT)}


def test_retired_and_renamed_keys_are_read_as_what_they_became(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "model.gone": None,
        "model.old_prompt": "model.prompt",
        "run.decay": "model.bridge_size.dropout",
        "datasets.*.colours": "datasets.*.bands",
    }
    monkeypatch.setattr(formats, "RETIRED", table)
    saved: dict[str, Any] = {
        "model": {"gone": 1, "old_prompt": "a photo of"},
        "run": {"decay": 0.25},
        "datasets": {"mine": {"colours": [3, 2, 1]}, "other": {"bands": [1, 2, 3], "colours": [1, 1, 1]}},
    }
    cfg = config_from_dict(saved)
    assert (cfg.model.prompt, cfg.model.bridge_size.dropout) == ("a photo of", 0.25)
    assert (cfg.datasets["mine"].bands, cfg.datasets["other"].bands) == ([3, 2, 1], [1, 2, 3])
    assert saved["model"] == {"gone": 1, "old_prompt": "a photo of"}  # the caller's stays as it is
    now = config_to_dict(cfg)
    assert upgraded(now) == now
    assert since_checkpoint(saved, cfg) == []


def with_meta(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    """A copy of an exported folder whose `meta.json` says something else."""
    shutil.copytree(folder, tmp_path / "copy")
    meta = json.loads((tmp_path / "copy" / META_FILE).read_text())
    model = meta["config"]["model"] | changes.pop("model", {})
    meta = meta | changes | {"config": meta["config"] | {"model": model}}
    (tmp_path / "copy" / META_FILE).write_text(json.dumps(meta))
    return tmp_path / "copy"


def test_a_key_of_a_newer_version_is_one_line_that_says_so(tmp_path: Path) -> None:
    later = FORMAT + 1
    copy = with_meta(
        RUNS / "format_1/exported", tmp_path, format=later, model={"warp": 9}, unheard_of={"of": 1}
    )
    with pytest.raises(ConfigError, match=rf"newer version \(format {later}, and this one") as error:
        bita.load(copy)
    assert "model.warp (saved configuration): unknown key" in str(error.value)
    assert str(copy) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_newer_format_without_unknown_keys_is_read(tmp_path: Path) -> None:
    copy = with_meta(RUNS / "format_1/exported", tmp_path, format=FORMAT + 1, unheard_of={"of": 1})
    assert config_of(copy).model.arch == "bita_opt"


def test_keys_that_went_before_there_was_a_table_are_known(tmp_path: Path) -> None:
    copy = with_meta(RUNS / "format_1/exported", tmp_path, model={"itc_bootstrap_weight": 0.5})
    assert config_of(copy).model.arch == "bita_opt"


def test_what_no_version_knew_is_still_refused(tmp_path: Path) -> None:
    copy = with_meta(RUNS / "format_1/exported", tmp_path, model={"warp": 9})
    with pytest.raises(UserError, match="unknown key") as error:
        config_of(copy)
    assert "newer" not in str(error.value)
