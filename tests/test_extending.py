"""docs/extending.md: its code, from outside of the package, trained, resumed, exported, loaded and captioned with."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

import bita
from bita.build import build_model
from bita.cli import run
from bita.config.layers import to_yaml
from bita.config.load import config_to_dict, load_config
from bita.config.plugins import load_plugins
from bita.config.schema import Config
from bita.errors import ConfigError, UserError
from bita.export import config_of, export_folder
from tests.config.test_resolved import lost
from tests.datasets.makers import prepared

ROOT = Path(__file__).parents[1]
TOKENIZERS = ROOT / "tests/fixtures/parity/tokenizers"
PAGE = (ROOT / "docs/extending.md").read_text()
EXAMPLES = {
    title: (code, yaml.safe_load(keys))
    for title, code, keys in re.findall(
        r"^## (.+?)\n.*?```python\n(.*?)```\n\n```yaml\n(.*?)```", PAGE, re.M | re.S
    )
}
WRONG = {
    "A bridge": ("model.bridge_size.temperature", "0", "must be above 0, not 0.0"),
    "A vision encoder": (
        "model.vit_args.chanels",
        "1",
        "unknown key; did you mean 'model.vit_args.channels'?",
    ),
    "A decoder": ("model.decoder_args.width", "wide", "wanted a whole number, not a text, 'wide'"),
    "A task": ("run.task_args.words", "0", "must be at least 1, not 0.0"),
    "A learning-rate schedule": ("run.lr_sched_args.last_epochs", "-1", "must be at least 0, not -1"),
    "An architecture": ("model.leek", "0.1", "unknown key; did you mean 'model.leak'?"),
    "A runner": ("run.runner_args.patience", "0", "must be at least 1, not 0"),
    "A metric": ("run.metrics.length.word", "4", "unknown key; did you mean 'run.metrics.length.words'?"),
    "A logger": ("run.loggers.table.digits", "0", "must be at least 1, not 0"),
    "An image processor": (
        "datasets.toy.vis_processor.train.spread",
        "1",
        "must be below 1, not 1.0",
    ),
    "A text processor": (
        "datasets.toy.text_processor.train.shore",
        "0",
        "unknown key; did you mean 'datasets.toy.text_processor.train.share'?",
    ),
    "A loss of stage 1": ("model.loss_args.spread.target", "2", "must be at most 1, not 2.0"),
}
SIZES = {
    "model": {
        "vit_args": {"embed_dim": 32, "num_heads": 2},
        "vit_depth": 1,
        "image_size": 28,
        "freeze_vit": False,
        "bridge_size": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64, "max_positions": 40},
        "num_query_token": 4,
        "embed_dim": 16,
        "max_txt_len": 12,
        "text_model": None,
        "text_tokenizer": str(TOKENIZERS / "bert"),
        "opt_model": None,
        "opt_tokenizer": str(TOKENIZERS / "opt"),
        "opt_config": {
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ffn_dim": 64,
            "max_position_embeddings": 64,
        },
        "freeze_lm": False,
    }
}  # fmt: skip
PROJECT = {
    "model": {"arch": "bita_opt", "model_type": "sizes.yaml"},
    "datasets": {
        "toy": {
            "build_info": {
                "annotations": {
                    split: {"storage": f"annotations/{split}.json"} for split in ("train", "val")
                },
                "images": {"storage": "images"},
            }
        }
    },
    "run": {
        "task": "captioning",
        "report_metric": False,
        "output_dir": "output",
        "name": "run",
        "resume": "auto",
        "device": "cpu",
        "max_epoch": 1,
        "batch_size_train": 4,
        "num_workers": 0,
        "warmup_steps": 2,
        "num_beams": 2,
        "max_len": 6,
        "min_len": 1,
        "valid_splits": ["val"],
    },
    "env": {"cache_root": "data"},
}


@pytest.fixture
def outside(tmp_path, monkeypatch, forgotten):
    """A folder with a small dataset, outside of the package, whose parts are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    prepared(tmp_path / "data", images=4, captions=2, splits=("train", "val"))
    Path("sizes.yaml").write_text(to_yaml(SIZES))
    return tmp_path


def project(code: str, keys: dict, *options: str) -> Config:
    """The project with an example's module and keys."""
    Path("my_part.py").write_text(code)
    Path("plain.yaml").write_text(to_yaml(PROJECT))
    Path("my.yaml").write_text(to_yaml({"base": "plain.yaml", "imports": ["my_part"]} | keys))
    return load_config("my.yaml", options)


@pytest.mark.parametrize("title", EXAMPLES)
@pytest.mark.usefixtures("outside")
def test_a_part_of_ones_own(title):
    code, keys = EXAMPLES[title]
    assert len(code.splitlines()) <= 60
    cfg = project(code, keys)
    key, value, problem = WRONG[title]
    with pytest.raises(ConfigError, match=re.escape(f"{key} (--options): {problem}")):
        load_config("my.yaml", [f"{key}={value}"])

    run(cfg)
    run(load_config("my.yaml", ["run.max_epoch=2"]))
    log = [json.loads(line) for line in Path("output/run/log.jsonl").read_text().splitlines()]
    assert [entry["checkpoint"] for entry in log if "checkpoint" in entry] == [
        str(Path("output/run/checkpoints/epoch_0001").resolve())
    ]
    assert set(json.loads(Path("output/run/validation.json").read_text())) == {"1", "2"}

    expected = {"datasets": {"toy": keys["preprocess"]}} if "preprocess" in keys else keys
    export_folder("output/run", Path("exported"))
    for folder in ("output/run", "exported"):
        own = config_of(folder)
        assert own.imports == ["my_part"]
        assert lost(expected, config_to_dict(own)) == []
    if cfg.model.writes_captions:
        images = sorted(Path("data/images").iterdir())[:2]
        written = [str(record) for record in bita.load("exported", "cpu").stream(images)]
        assert written == [str(record) for record in bita.load("output/run", "cpu").stream(images)]
        assert all(isinstance(caption, str) for caption in written)


@pytest.mark.usefixtures("outside")
def test_a_metric_and_a_logger_of_ones_own_say_what_they_should():
    (metric, metric_keys), (logger, logger_keys) = EXAMPLES["A metric"], EXAMPLES["A logger"]
    keys = {"run": metric_keys["run"] | logger_keys["run"]}
    scores = run(project(metric + logger, keys, "run.test_splits=[val]"))
    assert set(scores["val"]) == {"length", "ROUGE_L"}
    (entry,) = json.loads(Path("output/run/validation.json").read_text()).values()
    assert (entry["best_by"], entry["quality"]) == (["length"], entry["scores"]["val"]["length"])
    per_image = json.loads(Path("output/run/results/val_scores.json").read_text())["per_image"].values()
    assert sum(own["length"] for own in per_image) / len(per_image) == pytest.approx(entry["quality"])
    curves = [line.split() for line in Path("output/run/curves.txt").read_text().splitlines()]
    assert {name for _, name, _ in curves} >= {"train/loss", "val/length"}
    assert not Path("output/run/tensorboard").exists()
    with pytest.raises(
        ConfigError, match=r"run.best_by \(--options\): unknown score 'lenght'; did you mean 'length'"
    ):
        load_config("my.yaml", ["run.best_by=[lenght]"])


@pytest.mark.usefixtures("outside")
def test_a_runner_of_ones_own_ends_when_it_says():
    (runner, keys), (metric, metric_keys) = EXAMPLES["A runner"], EXAMPLES["A metric"]
    still = ["run.max_epoch=9", "run.init_lr=0", "run.warmup_lr=0", "run.weight_decay=0"]
    run(project(runner + metric, {"run": keys["run"] | metric_keys["run"]}, *still))
    assert set(json.loads(Path("output/run/validation.json").read_text())) == {"1", "2"}


@pytest.mark.usefixtures("outside")
def test_an_encoder_of_ones_own_reads_its_weights():
    cfg = project(*EXAMPLES["A vision encoder"])
    state = build_model(cfg.model).visual_encoder.state_dict()
    torch.save(state, "encoder.pth")
    frozen = load_config("my.yaml", ["model.vit_weights=encoder.pth", "model.freeze_vit=true"]).model
    model = build_model(frozen)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.visual_encoder.state_dict().items())
    assert not any(name.startswith("visual_encoder.") for name in model.checkpoint_state())
    torch.save({"layers.0.weight": state["layers.0.weight"]}, "encoder.pth")
    with pytest.raises(UserError, match=r"3 of 4 tensors of two_convs are not in it, e\.g\. layers\.0\.bias"):
        build_model(frozen)


@pytest.mark.usefixtures("outside")
def test_a_run_whose_module_is_gone_says_so():
    code, keys = EXAMPLES["A task"]
    run(project(code, keys))
    Path("my_part.py").unlink()
    del sys.modules["my_part"]
    with pytest.raises(ConfigError) as caught:
        bita.load("output/run", "cpu")
    message = str(caught.value)
    assert message.startswith(str(Path("output/run/checkpoints/epoch_0001").resolve()))
    assert "my_part cannot be imported (ModuleNotFoundError: No module named 'my_part')" in message
    assert "PYTHONPATH" in message
    assert "\n" not in message


@pytest.mark.parametrize("broken", [False, True])
def test_an_installed_packages_parts(outside, monkeypatch, broken):
    folder = outside / "site"
    (folder / "my_package-1.0.dist-info").mkdir(parents=True)
    (folder / "my_package-1.0.dist-info/METADATA").write_text("Name: my-package\nVersion: 1.0\n")
    (folder / "my_package-1.0.dist-info/entry_points.txt").write_text("[bita.plugins]\nmine = my_part\n")
    (folder / "my_part.py").write_text("1 / 0" if broken else EXAMPLES["A learning-rate schedule"][0])
    monkeypatch.syspath_prepend(folder)
    load_plugins.cache_clear()
    Path("my.yaml").write_text(to_yaml(PROJECT))
    try:
        if broken:
            expected = (
                r"^plugin mine of the package my-package: my_part cannot be imported \(ZeroDivision.*\); mend"
            )
            with pytest.raises(ConfigError, match=expected):
                load_config("my.yaml")
        else:
            assert load_config("my.yaml", ["run.lr_sched=constant"]).run.lr_sched_args.last_epochs == 1
    finally:
        load_plugins.cache_clear()
