"""The project files in configs/: each loads, says how it is run, and starts from the stage before."""

from __future__ import annotations

from itertools import pairwise

import pytest
import yaml

from bita.config.load import CONFIGS, config_from_dict, config_to_dict, config_to_yaml, load_config
from bita.registry import models

PROJECTS = sorted((CONFIGS / "projects").rglob("*.yaml"))


@pytest.mark.parametrize("path", PROJECTS, ids=lambda path: str(path.relative_to(CONFIGS / "projects")))
def test_every_project_file_loads_and_its_resolved_form_loads_to_the_same(path, tmp_path, caplog):
    cfg = load_config(path, need_files=False)
    saved = tmp_path / "config.yaml"
    saved.write_text(config_to_yaml(cfg))
    assert load_config(saved, need_files=False) == cfg
    assert config_from_dict(config_to_dict(cfg)) == cfg
    assert config_from_dict(yaml.safe_load(saved.read_text())) == cfg
    assert not [r for r in caplog.messages if "no effect" in r or "not used" in r]


@pytest.mark.parametrize("path", PROJECTS, ids=lambda path: str(path.relative_to(CONFIGS / "projects")))
def test_every_project_file_opens_with_its_command(path):
    title, command, *_ = path.read_text().splitlines()
    assert title.startswith("# ")
    script = command.split("bash ")[1].split()[0]
    assert (CONFIGS.parent / script).is_file()


@pytest.mark.parametrize(
    ("arch", "kind"), [(arch, kind) for arch in models for kind in models.config(arch).model_types]
)
def test_every_model_type_loads(project, arch, kind):
    text = f"model: {{arch: {arch}, model_type: {kind}}}\ndatasets: [ucm_caption]\nrun: {{}}\n"
    cfg = project(text, need_files=False)
    assert cfg.model.arch == arch
    assert cfg.datasets["ucm_caption"].vis_processor["eval"].name == "bita_image_eval"


def test_published_recipes():
    stages = {path.stem: load_config(path, need_files=False) for path in PROJECTS}
    recipe = {
        name: (run.batch_size_train, run.max_epoch, run.warmup_lr, run.init_lr, run.min_lr, run.warmup_steps)
        for name in ("pretrain_stage1", "pretrain_stage2", "caption_ft")
        for run in [stages[name].run]
    }
    assert recipe == {
        "pretrain_stage1": (96, 5, 1e-6, 1e-4, 1e-5, 5000),
        "pretrain_stage2": (48, 5, 1e-6, 1e-4, 1e-5, 2000),
        "caption_ft": (48, 50, 1e-8, 1e-5, 0.0, 1000),
    }
    for name in ("pretrain_stage1", "pretrain_stage2"):
        assert set(stages[name].datasets) == {"nwpu_caption", "rsicd_caption", "ucm_caption"}
        assert stages[name].run.valid_splits == []
    assert stages["pretrain_stage2"].model.prompt == ""
    for name in ("caption_ft", "caption_eval"):
        cfg = stages[name]
        assert cfg.model.prompt == "a photo of"
        assert (cfg.run.num_beams, cfg.run.max_len, cfg.run.min_len, cfg.run.batch_size_eval) == (
            5,
            22,
            5,
            16,
        )
    train = stages["pretrain_stage1"].datasets["ucm_caption"].vis_processor["train"]
    assert (train.name, train.min_scale, train.max_scale) == ("bita_image_train", 0.5, 1.0)


def test_the_qformers_recipes_differ_from_the_ifts_in_the_bridge_alone():
    for name in ("train/pretrain_stage1", "train/pretrain_stage2", "train/caption_ft", "eval/caption_eval"):
        ours, theirs = (
            config_to_dict(load_config(CONFIGS / f"projects/bita/{name}{kind}.yaml", need_files=False))
            for kind in ("", "_qformer")
        )
        differing = {
            f"{part}.{key}"
            for part in ("model", "run")
            for key in ours[part]
            if ours[part][key] != theirs[part][key]
        }
        allowed = {"model.model_type", "model.bridge", "model.init_from", "run.output_dir"}
        assert {"model.bridge", "run.output_dir"} < differing <= allowed
        assert ours["datasets"] == theirs["datasets"]


def test_each_stage_starts_from_the_one_before():
    for kind in ("", "_qformer", "_tiny"):
        stages = {
            name: load_config(CONFIGS / f"projects/bita/{name}{kind}.yaml", need_files=False)
            for name in (
                "train/pretrain_stage1",
                "train/pretrain_stage2",
                "train/caption_ft",
                "eval/caption_eval",
            )
        }
        order = list(stages.values())
        for before, after in pairwise(order):
            assert after.model.init_from == before.run.output_dir
