"""Layers of a configuration: which value wins, what is filled in, which numbers are allowed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from bita.config import parts, schema
from bita.config.checks import check_annotations
from bita.config.load import config_to_yaml, load_config
from bita.errors import ConfigError
from tests.config.conftest import MINIMAL


def test_later_layers_win(project):
    text = MINIMAL + "  max_epoch: 7\n  min_lr: 1e-5\n"
    cfg = project(text, "run.max_epoch=9", "datasets.ucm_caption.cache_images=true")
    assert cfg.run.batch_size_train == 16  # the schema's
    assert cfg.model.opt_config["hidden_size"] == 2560  # the model's
    assert cfg.datasets["ucm_caption"].build_info.images.storage == "ucm/images"  # the dataset's
    assert cfg.run.min_lr == 1e-5  # the project file's
    assert cfg.run.max_epoch == 9  # the option's
    assert cfg.datasets["ucm_caption"].cache_images is True


def test_a_later_option_wins(project):
    assert project(MINIMAL, "run.seed=1", "run.seed=2").run.seed == 2


def test_options_take_yaml(project):
    cfg = project(
        MINIMAL,
        "run.init_lr=1e-5",
        "run.clip_grad_norm=1",
        "run.train_splits=[train, val]",
        "run.train_dataset_ratios={ucm_caption: 2}",
        "run.name='7'",
        'model.prompt=""',
        "run.amp=off",
        "model.opt_model=null",
        "run.output_dir=out=put/2026-11-23",
    )
    assert cfg.run.init_lr == 1e-5
    assert type(cfg.run.clip_grad_norm) is float
    assert cfg.run.train_splits == ["train", "val"]
    assert cfg.run.train_dataset_ratios == {"ucm_caption": 2.0}
    assert cfg.run.name == "7"
    assert cfg.model.prompt == ""
    assert cfg.run.amp is False
    assert cfg.model.opt_model is None
    assert cfg.run.output_dir == "out=put/2026-11-23"


def test_interpolation(project):
    text = MINIMAL + "  output_dir: runs/${run.seed}\nenv: {cache_root: big}\n"
    cfg = project(text, "datasets.ucm_caption.build_info.images.storage=${env.cache_root}/tif")
    assert cfg.run.output_dir == "runs/42"
    assert cfg.datasets["ucm_caption"].build_info.images.storage == "big/tif"


def test_numbers_and_texts_survive_saving(project, tmp_path):
    cfg = project(
        MINIMAL, "run.name='1e-5'", "run.init_lr=1e-10", r"run.output_dir=a/\${b}", "model.prompt='on'"
    )
    assert (cfg.run.name, cfg.run.output_dir, cfg.model.prompt) == ("1e-5", "a/${b}", "on")
    (tmp_path / "saved.yaml").write_text(config_to_yaml(cfg))
    assert load_config(tmp_path / "saved.yaml") == cfg


def test_an_empty_key_in_a_file_gives_nothing(project):
    cfg = project(
        MINIMAL.replace("run:", "env:\nrun:").replace("caption_opt2.7b", "caption_opt2.7b\n  opt_config:")
    )
    assert cfg.model.opt_config["num_hidden_layers"] == 32


def test_datasets_as_a_list_are_exactly_these(project):
    text = MINIMAL.replace("  ucm_caption:", "  ucm_caption: {cache_images: true}\n  rsicd_caption: {}")
    assert list(project(text).datasets) == ["ucm_caption", "rsicd_caption"]
    cfg = project(
        text, "datasets=[sydney_caption, ucm_caption]", "datasets.sydney_caption.cache_images=false"
    )
    assert list(cfg.datasets) == ["sydney_caption", "ucm_caption"]
    assert cfg.datasets["ucm_caption"].cache_images
    assert not cfg.datasets["sydney_caption"].cache_images
    assert list(project(text, "datasets.ucm_caption=null").datasets) == ["rsicd_caption"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["run.top_p=0.5"], "run.top_p (--options): 0.5 has no effect: it is of drawn captions; set run.use_nucleus"),
        (["run.num_beams=1", "run.length_penalty=0"], "run.length_penalty (--options): 0.0 has no effect: it is of a"),
        (["run.num_beams=1", "run.choose_by=consensus"], "one caption leaves no choice; set run.num_beams above 1"),
        (["run.use_nucleus_sampling=true", "run.choose_by=consensus"], "no choice; set run.num_captions above 1"),
        (["model.arch=bita_former", "model.model_type=pretrain", "run.task=image_text_pretrain", "run.views=2"],
         "run.views (--options): 2 has no effect: bita_former writes no captions"),
    ],
)  # fmt: skip
def test_a_key_of_the_search_that_changes_nothing_is_mentioned(project, caplog, options, said):
    project(MINIMAL.replace("test_splits", "train_splits"), *options)
    assert said in caplog.text
    assert caplog.text.count("has no effect") == 1
    caplog.clear()
    project(MINIMAL, "model.init_from=x", "run.evaluate=true", need_files=False)
    assert "no effect" not in caplog.text


def test_captions_per_image_is_one_number_for_all_training_sets(project, caplog):
    text = MINIMAL.replace("  ucm_caption:", "  ucm_caption: {captions_per_image: 5}\n  rsicd_caption: {}")
    with pytest.raises(ConfigError, match=r"must be the same for all training sets .*has 1"):
        project(text)
    cfg = project(text, "datasets.rsicd_caption.captions_per_image=5", "model.itc_positives=same_image")
    assert not caplog.messages
    assert cfg.datasets["rsicd_caption"].captions_per_image == 5
    stage_1 = ("model.arch=bita_former", "model.model_type=pretrain_vitL", "run.task=image_text_pretrain")
    project(text, "datasets.rsicd_caption.captions_per_image=5", *stage_1)
    assert "set model.itc_positives=same_image" in caplog.text


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("null", "name an annotation file"),
        ("[]", "name an annotation file"),
        ("no.json", "is missing; prepare it: python"),
    ],
)
def test_annotation_files_are_looked_for_before_anything_is_built(project, storage, said):
    cfg = project(MINIMAL, f"datasets.ucm_caption.build_info.annotations.test.storage={storage}")
    with pytest.raises(
        ConfigError, match=f"datasets.ucm_caption.build_info.annotations.test.storage: .*{said}"
    ):
        check_annotations(cfg)


def test_evaluation_asks_for_the_files_of_its_test_splits_only(project, tmp_path, caplog):
    (tmp_path / "test.json").write_text("[]")
    text = MINIMAL.replace("  test_splits", "  valid_splits: [val]\n  test_splits")
    evaluation = ("run.evaluate=true", f"model.init_from={tmp_path}", "run.resume=gone")
    cfg = project(
        text,
        *evaluation,
        f"datasets.ucm_caption.build_info.annotations.test.storage={tmp_path}/test.json",
        need_files=False,
    )
    check_annotations(cfg)
    assert "gone" not in caplog.text
    cfg.run.evaluate = False
    cfg.run.train_splits = []
    with pytest.raises(ConfigError, match=r"annotations\.val\.storage: .* is missing"):
        check_annotations(cfg)


@pytest.mark.parametrize("key", ["valid_splits", "test_splits"])
def test_shards_that_would_be_evaluated_are_refused_at_the_start(problem, key):
    storage = "datasets.ucm_caption.build_info.annotations.train.storage=ucm/train.shards.json"
    said = problem(MINIMAL, storage, "run.train_splits=[train]", f"run.{key}=[train]")
    assert said == (
        f"run.{key} (--options): train of ucm_caption is stored as shards, which can be trained on, not evaluated; "
        "name a split with image files"
    )


def test_a_file_may_start_from_others(project):
    Path("far").mkdir()
    Path("far/first.yaml").write_text(MINIMAL + "  max_epoch: 7\n  min_lr: 1e-5\n")
    Path("far/second.yaml").write_text("base: first.yaml\nrun: {max_epoch: 8, seed: 3}\n")
    run = project("base: far/second.yaml\nrun: {max_epoch: 9}\n", "run.seed=4").run
    assert (run.task, run.min_lr, run.max_epoch, run.seed) == ("captioning", 1e-5, 9, 4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: no.yaml", "base (my.yaml:1): no.yaml: no such file"),
        ("base: [a]", "base (my.yaml:1): wanted the path of a project file, not a list"),
        ("base: my.yaml", "base (my.yaml:1): my.yaml starts from this file itself; break the circle"),
        ("base: a.yaml", "base (a.yaml:1): ./my.yaml starts from this file itself; break the circle"),
        ("base: wrong.yaml", "run.max_epohc (wrong.yaml:1): unknown key; did you mean 'run.max_epoch'?"),
    ],
)
def test_a_base_that_is_wrong(problem, text, expected):
    Path("a.yaml").write_text("base: ./my.yaml")
    Path("wrong.yaml").write_text("run: {max_epohc: 1}")
    assert problem(text) == expected


def test_a_base_stands_in_a_file(problem):
    assert problem(MINIMAL, "base=my.yaml").startswith(
        "base (--options): the file to start from can only stand"
    )


def test_model_and_dataset_can_be_options(project):
    cfg = project(
        "run: {}\n", "model.arch=bita_opt", "model.model_type=caption_opt2.7b", "datasets=[ucm_caption]"
    )
    assert cfg.model.arch == "bita_opt"


def test_a_model_type_can_be_a_file_of_ones_own(project):
    Path("mine.yaml").write_text("model: {num_query_token: 3, opt_config: {hidden_size: 8}}\n")
    cfg = project(MINIMAL.replace("caption_opt2.7b", "mine.yaml"))
    assert (cfg.model.num_query_token, cfg.model.opt_config) == (3, {"hidden_size": 8})


def test_another_kind_of_language_model_brings_all_its_sizes(project):
    sizes = "model.opt_config={model_type: llama, hidden_size: 8}"
    assert project(MINIMAL, sizes).model.opt_config == {"model_type": "llama", "hidden_size": 8}
    assert project(MINIMAL, "model.opt_config.hidden_size=8").model.opt_config["ffn_dim"] == 10240


def test_every_number_has_a_range():
    """Of every dataclass that a key may stand in, those of all parts included."""
    classes = {
        value
        for module in (schema, parts)
        for value in vars(module).values()
        if dataclasses.is_dataclass(value)
    }
    without = [
        f"{cls.__name__}.{f.name}"
        for cls in classes
        for f in dataclasses.fields(cls)
        if re.search(r"\b(int|float)\b", str(f.type)) and not {"at_least", "above"} & f.metadata.keys()
    ]
    assert sorted(without) == []


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("run.seed=-1", "must be at least 0, not -1"),
        ("run.seed=9223372036854775808", "wanted a whole number of at most 64 bits, not 9223372036854775808"),
        ("run.repetition_penalty=0", "must be above 0, not 0.0"),
        ("run.save_every_steps=0", "must be at least 1, not 0"),
        ("run.train_dataset_ratios={ucm_caption: -1}", "must be at least 0, not -1.0"),
        ("model.vit_layers=[0, 2]", "must be at least 1, not 0"),
        ("model.lora={dropout: 1}", "must be below 1, not 1.0"),
        (
            "datasets.ucm_caption.vis_processor.eval.mean=[123.7, 116.3, 103.5]",
            "must be at most 10, not 123.7",
        ),
        ("datasets.ucm_caption.vis_processor.eval.std=[1, 1]", "wants a number for each of three channels"),
        ("datasets.ucm_caption.text_processor.train.max_words=0", "must be at least 1, not 0"),
    ],
)
def test_numbers_out_of_range(problem, option, expected):
    message = problem(MINIMAL, option)
    assert message.startswith(option.partition("=")[0])
    assert f" (--options): {expected}" in message


def test_lora_is_off_or_has_defaults(project):
    assert project(MINIMAL).model.lora is None
    lora = project(MINIMAL, "model.lora={r: 4}").model.lora
    assert (lora.r, lora.alpha, lora.target_modules) == (4, 32.0, None)


def test_processors_take_the_models_defaults_but_not_of_another_name(project):
    text = MINIMAL + "preprocess: {vis_processor: {train: {min_scale: 0.3, mean: [0, 0, 0]}}}\n"
    train = project(text).datasets["ucm_caption"].vis_processor["train"]
    assert (train.name, train.min_scale, train.max_scale, train.mean) == (
        "bita_image_train",
        0.3,
        1.0,
        [0.0, 0.0, 0.0],
    )
    key = "datasets.ucm_caption.vis_processor.train"
    train = project(text, f"{key}.max_scale=0.9").datasets["ucm_caption"].vis_processor["train"]
    assert (train.min_scale, train.max_scale) == (0.3, 0.9)
    other = project(text, f"{key}.name=bita_image_eval").datasets["ucm_caption"].vis_processor["train"]
    assert (other.name, other.mean) == ("bita_image_eval", None)
