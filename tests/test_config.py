"""Configuration: layers, messages, published spellings."""

from __future__ import annotations

import dataclasses
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from bita.config import parts, schema
from bita.config.checks import check_annotations
from bita.config.load import (
    CONFIGS,
    config_from_dict,
    config_to_dict,
    config_to_yaml,
    load_config,
)
from bita.config.schema import Config
from bita.errors import ConfigError
from bita.registry import models

PROJECTS = sorted((CONFIGS / "projects").rglob("*.yaml"))
FULL = CONFIGS / "projects/bita/train/pretrain_stage1.yaml"
MINIMAL = """\
model:
  arch: bita_opt
  model_type: caption_opt2.7b
datasets:
  ucm_caption:
run:
  task: captioning
  test_splits: [test]
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes a project file into an empty current folder and loads it: project(text, *options) → Config."""
    monkeypatch.chdir(tmp_path)

    def load(text: str = MINIMAL, *options: str, **settings: bool) -> Config:
        Path("my.yaml").write_text(text)
        return load_config("my.yaml", options, **settings)

    return load


@pytest.fixture
def problem(project):
    """The message of a project file that is wrong, which must be one line: problem(text, *options) → str."""

    def message(text: str = MINIMAL, *options: str) -> str:
        with pytest.raises(ConfigError) as caught:
            project(text, *options)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2
        return str(caught.value)

    return message


# Shipped files


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


# Layers


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


# A dataset and classes of one's own

MY_DATASET = """\
datasets:
  my_caption:
    build_info:
      annotations: {train: {storage: my/train.json}, night: {storage: my/night.json}}
      images: {storage: my/images}
"""


def test_a_dataset_of_ones_own_is_a_file_in_a_folder(project):
    Path("sets/deep").mkdir(parents=True)
    Path("sets/deep/my.yaml").write_text(MY_DATASET)
    text = MINIMAL.replace("ucm_caption:", "my_caption:").replace("[test]", "[night]")
    cfg = project(text + "env: {dataset_configs: [sets]}\n")
    assert cfg.datasets["my_caption"].build_info.annotations["night"].storage == "my/night.json"
    assert cfg.datasets["my_caption"].vis_processor["train"].name == "bita_image_train"


def test_or_an_entry_in_the_project_file(project):
    entry = yaml.safe_load(MY_DATASET)["datasets"]
    cfg = project(yaml.safe_dump(yaml.safe_load(MINIMAL) | {"datasets": entry}), "run.test_splits=[night]")
    assert cfg.datasets["my_caption"].build_info.images.storage == "my/images"


def test_two_files_with_the_same_dataset(project, problem):
    Path("sets").mkdir()
    Path("sets/my.yaml").write_text(MY_DATASET.replace("my_caption", "ucm_caption"))
    message = problem(MINIMAL + "env: {dataset_configs: [sets]}\n")
    assert message == "ucm_caption (sets/my.yaml:2): a dataset of this name is described in another file too"


def test_a_typing_error_in_a_dataset_file(problem):
    Path("sets").mkdir()
    Path("sets/my.yaml").write_text(
        MY_DATASET.replace("    build_info:", "    cache_image: true\n    build_info:")
    )
    message = problem("datasets: [my_caption]\nenv: {dataset_configs: [sets]}\n", *MODEL)
    assert message.startswith("datasets.my_caption.cache_image (sets/my.yaml:3): unknown key; did you mean")


MODEL = ("model.arch=bita_opt", "model.model_type=caption_opt2.7b")


def test_imports_register_classes_of_ones_own(project, monkeypatch, forgotten):
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my_former_module.py").write_text(
        "from bita.registry import models\n@models.register('my_former')\nclass MyFormer: pass\n"
    )
    text = "imports: [my_former_module]\n" + MINIMAL.replace("arch: bita_opt", "arch: my_former")
    text = text.replace("captioning", "image_text_pretrain")
    cfg = project(text)
    assert models.get(cfg.model.arch).__name__ == "MyFormer"
    assert cfg.imports == ["my_former_module"]


def test_imports_that_fail(problem):
    assert problem("imports: [no_such_module]\n" + MINIMAL) == (
        "imports (my.yaml:1): no_such_module cannot be imported (ModuleNotFoundError: No module named 'no_such_module')"
    )
    assert (
        problem("imports: os\n" + MINIMAL)
        == "imports (my.yaml:1): wanted a list of modules, such as [my_models]"
    )
    assert "can only stand in a project file" in problem(MINIMAL, "imports=[os]")


# Mistakes

UNKNOWN_KEYS = [
    ("run.max_epochs=3", "run.max_epochs (--options): unknown key; did you mean 'run.max_epoch'?"),
    ("rnu.max_epoch=3", "rnu (--options): unknown key; did you mean 'run'?"),
    (
        "model.bridge_size.layer=3",
        "model.bridge_size.layer (--options): unknown key; did you mean 'model.bridge_size.layers'?",
    ),
    ("run.prompt=x", "run.prompt (--options): unknown key; did you mean 'model.prompt'?"),
    ("model.arhc=bita_opt", "model.arhc (--options): unknown key; did you mean 'model.arch'?"),
    (
        "datasets.ucm_caption.vis_procesor.train.name=x",
        "datasets.ucm_caption.vis_procesor (--options): unknown key; "
        "did you mean 'datasets.ucm_caption.vis_processor'?",
    ),
    (
        "datasets.ucm_caption.text_processor.train.promt=x",
        "datasets.ucm_caption.text_processor.train.promt (--options): unknown key; "
        "did you mean 'datasets.ucm_caption.text_processor.train.prompt'?",
    ),
    ("env.cache=x", "env.cache (--options): unknown key; did you mean 'env.cache_root'?"),
]
UNKNOWN_NAMES = [
    ("model.arch=bita_op", "model.arch (--options): unknown model arch 'bita_op'; did you mean 'bita_opt'?"),
    (
        "model.model_type=caption_opt2",
        "model.model_type (--options): unknown type of bita_opt 'caption_opt2'; did you mean 'caption_opt2.7b'?",
    ),
    (
        "datasets=[umc_caption]",
        "datasets.umc_caption (--options): unknown dataset 'umc_caption'; did you mean 'ucm_caption'?",
    ),
    (
        "datasets.umc_caption.cache_images=true",
        "datasets.umc_caption (--options): unknown dataset 'umc_caption'; did you mean",
    ),
    ("run.task=caption", "run.task (--options): unknown task 'caption'; did you mean 'captioning'?"),
    ("run.runner=runner", "run.runner (--options): unknown runner 'runner'; did you mean 'runner_base'?"),
    (
        "run.lr_sched=cosine_lr",
        "run.lr_sched (--options): unknown schedule 'cosine_lr'; did you mean 'linear_warmup_cosine_lr'?",
    ),
    (
        "datasets.ucm_caption.vis_processor.train.name=bita_image_trian",
        "datasets.ucm_caption.vis_processor.train.name (--options): unknown processor 'bita_image_trian'; "
        "did you mean 'bita_image_train'?",
    ),
    (
        "datasets.ucm_caption.vis_processor.tarin.name=bita_image_train",
        "datasets.ucm_caption.vis_processor.tarin (--options): unknown mode 'tarin'; did you mean 'train'?",
    ),
    (
        "run.valid_splits=[vla]",
        "run.valid_splits (--options): unknown split of ucm_caption 'vla'; did you mean 'val'?",
    ),
    (
        "datasets.ucm_caption.build_info.annotations.tset.storage=x",
        "datasets.ucm_caption.build_info.annotations.tset (--options): unknown split 'tset'; did you mean 'test'?",
    ),
    (
        "run.train_dataset_ratios={umc_caption: 1}",
        "run.train_dataset_ratios.umc_caption (--options): unknown dataset",
    ),
    (
        "datasets.ucm_caption.synthetic={trian: 1}",
        "datasets.ucm_caption.synthetic.trian (--options): unknown key",
    ),
    (
        "model.loss_weights.itg=1",
        "model.loss_weights.itg (--options): captioning needs a causal mask, which the bridge ift has not; set 0, or",
    ),
    (
        "model.loss_weights.itc=0",
        "model.loss_weights (--options): without itc and itm the queries' last layer learns nothing",
    ),
    ("model.loss_weights.itm=-1", "model.loss_weights.itm (--options): must be at least 0"),
    (
        "model.init_map=qformer",
        "model.init_map (--options): unknown value 'qformer'; did you mean 'qformer_to_ift'?",
    ),
    ("model.bridge=qformer2", "model.bridge (--options): unknown bridge 'qformer2'; did you mean 'qformer'?"),
    (
        "model.itc_positives=pairs",
        "model.itc_positives (--options): unknown value 'pairs'; did you mean 'pair'?",
    ),
    (
        "model.prompt_joint=glue",
        "model.prompt_joint (--options): unknown value 'glue'; did you mean 'glued'?",
    ),
    ("model.lm_precision=fp8", "model.lm_precision (--options): unknown value 'fp8'; did you mean 'fp"),
    ("model.vit_precision=16", "model.vit_precision (--options): unknown value '16'; did you mean"),
    (
        "model.vit_model=clip_l",
        "model.vit_model (--options): unknown vision encoder 'clip_l'; did you mean 'clip_L'?",
    ),
    ("run.device=gpu", "run.device (--options): unknown value 'gpu'; did you mean 'cpu'?"),
]
WRONG_VALUES = [
    ("run.max_epoch=five", "run.max_epoch (--options): wanted a whole number, not a text, 'five'"),
    ("run.max_epoch=2.0", "run.max_epoch (--options): wanted a whole number, not a number, 2.0"),
    ("run.max_epoch=true", "run.max_epoch (--options): wanted a whole number, not true or false, true"),
    ("run.max_epoch='3'", "run.max_epoch (--options): wanted a whole number, not a text, '3'"),
    ("run.max_epoch=null", "run.max_epoch (--options): wanted a whole number, not null"),
    ("run.amp='true'", "run.amp (--options): wanted true or false, not a text, 'true'"),
    ("run.amp=1", "run.amp (--options): wanted true or false, not a whole number, 1"),
    ("run.init_lr=fast", "run.init_lr (--options): wanted a number, not a text, 'fast'"),
    ("run.init_lr=.nan", "run.init_lr (--options): wanted a finite number, not nan"),
    (
        "run.train_splits=train",
        "run.train_splits (--options): wanted a list such as [a, b], not a text, 'train'",
    ),
    (
        "run.train_splits=[1]",
        "run.train_splits (--options): unknown split of ucm_caption '1'; did you mean",
    ),
    ("run.max_epoch=1:30", "run.max_epoch (--options): wanted a whole number, not a text, '1:30'"),
    ("run.max_epoch=7 # days", "run.max_epoch (--options): wanted a whole number, not a text, '7 # days'"),
    (
        f"run.seed={'9' * 5000}",
        "--options: the value of run.seed is not plain YAML (a number of too many digits)",
    ),
    (f"run.init_lr={'9' * 400}", "run.init_lr (--options): wanted a finite number, not inf"),
    ("run=5", "run (--options): wanted keys such as task, not a whole number, 5"),
    ("datasets=5", "datasets (--options): wanted names with keys below them, not a whole number, 5"),
    (
        "datasets.ucm_caption=5",
        "datasets.ucm_caption (--options): wanted keys such as dataset_card, not a whole number, 5",
    ),
    ("model.opt_config=[1]", "model.opt_config (--options): wanted keys with values, not a list"),
    ("model.lora={rank: 4}", "model.lora.rank (--options): unknown key; did you mean 'model.lora.r'?"),
    ("model.lora={r: 0}", "model.lora.r (--options): must be at least 1, not 0"),
    (
        "model.lm_quantize=int8",
        "model.lm_quantize (--options): 8 and 4 bit are for evaluation and captioning",
    ),
    ("model.arch=5", "model.arch (--options): unknown model arch '5'; did you mean"),
    ("env.dataset_configs=sets", "env.dataset_configs (--options): wanted a list of folders"),
    ("env.dataset_configs=[sets]", "env.dataset_configs (--options): sets: no such folder"),
    ("run.batch_size_train=0", "run.batch_size_train (--options): must be at least 1, not 0"),
    ("run.accum_grad_iters=0", "run.accum_grad_iters (--options): must be at least 1, not 0"),
    ("run.beta2=1", "run.beta2 (--options): must be below 1, not 1.0"),
    ("run.min_len=30", "run.min_len (--options): 30 is more than run.max_len, 22"),
    ("run.top_p=0", "run.top_p (--options): must be above 0, not 0.0"),
    ("run.temperature=0", "run.temperature (--options): must be above 0, not 0.0"),
    (
        "run.lr_sched=linear_warmup_step_lr",
        "run.lr_decay_rate (--options): linear_warmup_step_lr needs it, such as 0.9",
    ),
    (
        "run.on_bad_image=ignore",
        "run.on_bad_image (--options): unknown value 'ignore'; did you mean 'error'?",
    ),
    ("run.parallel=zero", "run.parallel (--options): unknown value 'zero'"),
    ("run.max_bad_fraction=-1", "run.max_bad_fraction (--options): must be at least 0, not -1"),
    ("run.metrics={CIDr: {}}", "run.metrics.CIDr (--options): unknown metric 'CIDr'; did you mean 'CIDEr'?"),
    (
        "run.metrics.SPICE.dri=x",
        "run.metrics.SPICE.dri (--options): unknown key; did you mean 'run.metrics.SPICE.dir'?",
    ),
    ("run.metrics.CLIPScore={}", "run.metrics.CLIPScore.run (--options): is missing"),
    (
        "run.loggers.tensorbord={}",
        "run.loggers.tensorbord (--options): unknown logger 'tensorbord'; did you mean 'tens",
    ),
    ("run.loggers.jsonl.file=x", "run.loggers.jsonl.file (--options): unknown key; "),
    (
        "run.best_by=[CIDEr, Blue_4]",
        "run.best_by (--options): unknown score 'Blue_4'; did you mean 'Bleu_4'?, of Bleu_1,",
    ),
    ("run.best_by=[]", "run.best_by (--options): names no score"),
    ("run.train_splits=[]", "run.train_splits (--options): names no split; set it, such as [train]"),
    ("run.evaluate=true", "model.init_from (my.yaml:1): is not set; name the run or checkpoint to evaluate"),
    ("run.output_dir=${run.nmae}", "run.output_dir (--options): ${run.nmae} is no other key"),
]


def test_fsdp_needs_a_language_model_to_cut_up(problem):
    text = MINIMAL.replace("bita_opt", "bita_former").replace("caption_opt2.7b", "pretrain_vitL")
    options = ("run.task=image_text_pretrain", "run.parallel=fsdp")
    assert problem(text, *options).startswith("run.parallel (--options): fsdp cuts up the language model")


def test_cached_images_cannot_be_left_out_as_they_come(problem):
    options = ("datasets.ucm_caption.cache_images=true", "run.on_bad_image=skip")
    assert "set datasets.ucm_caption.cache_images=false" in problem(MINIMAL, *options)


@pytest.mark.parametrize(("option", "expected"), UNKNOWN_KEYS + UNKNOWN_NAMES + WRONG_VALUES)
def test_a_mistake_in_an_option(problem, option, expected):
    assert problem(MINIMAL, option).startswith(expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  test", "  max_epochs: 3\n  test", "run.max_epochs (my.yaml:8): unknown key; did you mean 'run.max_epoch'?"),
        ("run:", "run.max_epoch: 3\nrun:", "run.max_epoch (my.yaml:6): unknown key; did you mean run: {max_epoch: …}?"),
        ("run:", "max_epoch: 3\nrun:", "max_epoch (my.yaml:6): unknown key; did you mean 'run.max_epoch'?"),
        ("run:", "max_epohc: 3\nrun:", "max_epohc (my.yaml:6): unknown key; did you mean 'run.max_epoch'?"),
        ("run:", "runs: {}\nrun:", "runs (my.yaml:6): unknown key; did you mean 'run'?"),
        ("captioning", "caption", "run.task (my.yaml:7): unknown task 'caption'; did you mean 'captioning'? of"),
        ("ucm_caption:", "umc_caption:", "datasets.umc_caption (my.yaml:5): unknown dataset 'umc_caption'; did you"),
        ("bita_opt", "bita_op", "model.arch (my.yaml:2): unknown model arch 'bita_op'; did you mean 'bita_opt'?"),
        ("[test]", "[tset]", "run.test_splits (my.yaml:8): unknown split of ucm_caption 'tset'; did you mean 'test'?"),
        ("captioning", "[captioning]", "run.task (my.yaml:7): wanted a text, not a list"),
        ("captioning", "captioning\n  task: captioning", "run.task (my.yaml:8): stands in line 7 too; keep one"),
        ("  arch: bita_opt\n", "", "model.arch (my.yaml:1): is missing; name it in my.yaml or in --options"),
        ("  ucm_caption:", "", "datasets (my.yaml:4): name at least one in my.yaml or in --options"),
        ("bita_opt\n", "bita_former\n", "model.model_type (my.yaml:3): unknown type of bita_former 'caption_opt2.7b'"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_project_file(problem, old, new, expected):
    assert old in MINIMAL
    assert problem(MINIMAL.replace(old, new)).startswith(expected.replace("? of", "?, of"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run: !!python/object/apply:os.system ['touch pwned']", "configuration my.yaml:1: not plain YAML (could not"),
        ("run: !!python/object/apply:pathlib.Path [x]", "configuration my.yaml:1: not plain YAML (could not determine"),
        ("a: 1\nrun: [", "configuration my.yaml:2: not plain YAML ("),
        ("- model", "configuration my.yaml: wanted keys such as model, datasets, run"),
        ("", "model.arch (defaults): is missing; name it in my.yaml or in --options"),
        ("run: &a {b: *a}", "configuration my.yaml: an anchor (&) contains itself"),
        (MINIMAL + "  train_splits: &a [*a]", "configuration: an anchor (&) contains itself"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_configuration(problem, text, expected):
    assert problem(text).startswith(expected)
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("run.max_epoch", "--options: 'run.max_epoch' is not of the form key=value, such as run.max_epoch=1"),
        ("=3", "--options: '=3' is not of the form key=value"),
        ("run..seed=3", "--options: 'run..seed=3' is not of the form key=value"),
        ("run.seed=[", "--options: the value of run.seed is not plain YAML ("),
        ("run.seed=!!python/name:os.system x", "--options: the value of run.seed is not plain YAML ("),
    ],
)
def test_an_option_that_is_none(problem, option, expected):
    assert problem(MINIMAL, option).startswith(expected)


def test_a_project_file_that_is_missing(problem, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config("configs/projects/bita/train/pretrain_stag1.yaml")
    assert "--cfg-path configs/projects/bita/train/pretrain_stag1.yaml: no such file; did you mean" in str(
        caught.value
    )
    assert "configs/projects/bita/train/pretrain_stage1.yaml" in str(caught.value)
    with pytest.raises(ConfigError, match=r"is a folder; name a file"):
        load_config(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"cannot be read \(it is not text in UTF-8\)"):
        load_config(tmp_path / "bytes.yaml")


def test_captioning_needs_a_model_that_writes(problem):
    text = "model: {arch: bita_former, model_type: pretrain_vitL}\ndatasets: [ucm_caption]\nrun: {task: captioning}\n"
    assert problem(text) == (
        "run.task (my.yaml:3): captioning needs a model that writes captions, such as model.arch=bita_opt: bita_former "
        "writes none"
    )


def test_only_the_splits_that_are_used_are_asked_for(project):
    Path("weights.pth").touch()
    cfg = project(MINIMAL, "run.evaluate=true", "run.train_splits=[absent]", "model.init_from=weights.pth")
    assert cfg.run.train_splits == ["absent"]


def test_config_from_dict_checks_too():
    content = config_to_dict(load_config(FULL, need_files=False))
    content["run"]["max_epochs"] = 3
    with pytest.raises(ConfigError, match=r"run.max_epochs \(saved configuration\): unknown key"):
        config_from_dict(content)
    with pytest.raises(ConfigError, match=r"datasets \(saved configuration\): is missing"):
        config_from_dict({"model": {}, "run": {}})


# Files


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("model.init_from=no/run", "model.init_from (--options): checkpoint no/run: no such file or folder; train"),
        ("model.pretrained=no/run", "model.init_from (--options): checkpoint no/run: no such file or folder"),
        ("model.init_from=empty", "model.init_from (--options): checkpoint empty: holds no finished checkpoint"),
        ("model.init_from=my.yaml", "model.init_from (--options): checkpoint my.yaml: not a weights file"),
        ("model.vit_weights=clip.pth", "model.vit_weights (--options): clip.pth: no such file"),
        ("model.opt_model=/no/opt", "model.opt_model (--options): /no/opt: no such folder"),
        ("model.opt_tokenizer=${env.cache_root}/opt", "model.opt_tokenizer (--options): data/opt: no such folder"),
        ("run.resume=last", "run.resume (--options): checkpoint last: no such file or folder (or write auto)"),
        ("run.resume_ckpt_path=no.pth", "run.resume (--options): checkpoint no.pth: no such file or folder"),
    ],
)  # fmt: skip
def test_a_file_that_is_missing(project, problem, caplog, option, expected):
    Path("empty").mkdir()
    assert problem(MINIMAL, option).startswith(expected)
    project(MINIMAL, option, need_files=False)
    assert expected in caplog.text


def test_what_may_lie_elsewhere_is_not_looked_for(project):
    cfg = project(
        MINIMAL, "model.pretrained=https://host/w.pth", "model.opt_model=facebook/opt-6.7b", "run.resume=auto"
    )
    assert cfg.model.init_from == "https://host/w.pth"


# Weights, five spellings


@pytest.fixture
def weights(project):
    """Two files of weights in the current folder."""
    for name in ("a.pth", "b.pth"):
        Path(name).touch()


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["init_from=a.pth"], "a.pth"),
        (["pretrained=a.pth"], "a.pth"),
        (["finetuned=a.pth"], "a.pth"),
        (["pretrained=a.pth", "load_pretrained=true"], "a.pth"),
        (["finetuned=b.pth", "load_finetuned=true", 'pretrained=""'], "b.pth"),
        (["pretrained=a.pth", "load_pretrained=false"], None),
        (["pretrained=a.pth", "load_pretrained=false", "finetuned=b.pth", "load_finetuned=true"], "b.pth"),
        (["pretrained=a.pth", "init_from=a.pth"], "a.pth"),
        (["load_pretrained=false", "load_finetuned=false"], None),
        (['init_from=""', 'pretrained=""', 'finetuned=""'], None),
    ],
)
def test_where_weights_come_from(project, options, expected):
    model = project(MINIMAL, *(f"model.{option}" for option in options)).model
    assert model.init_from == expected
    assert (model.pretrained, model.finetuned, model.load_pretrained, model.load_finetuned) == (None,) * 4


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["pretrained=a.pth", "finetuned=b.pth"],
            "finetuned b.pth (--options), pretrained a.pth (--options); keep one",
        ),
        (["pretrained=a.pth", "finetuned=b.pth", "load_finetuned=true", "load_pretrained=true"], "keep one"),
        (["pretrained=a.pth", "finetuned=b.pth", "load_finetuned=true"], "keep one"),
        (
            ["init_from=a.pth", "finetuned=b.pth"],
            "init_from a.pth (--options), finetuned b.pth (--options); keep one",
        ),
        (
            ["load_pretrained=true"],
            "model.load_pretrained (--options): is true, but model.pretrained names no file",
        ),
        (
            ["load_finetuned=true", 'finetuned=""', "init_from=a.pth"],
            "is true, but model.finetuned names no file",
        ),
    ],
)
def test_weights_that_contradict_each_other(problem, options, expected):
    assert expected in problem(MINIMAL, *(f"model.{option}" for option in options))


@pytest.mark.usefixtures("weights")
def test_weights_that_are_switched_off_are_mentioned(project, caplog):
    project(MINIMAL, "model.pretrained=a.pth", "model.load_pretrained=false")
    assert "model.pretrained (--options): not used, since model.load_pretrained is false" in caplog.messages


@pytest.mark.usefixtures("weights")
def test_resume_has_two_spellings(project, problem):
    run = project(MINIMAL, "run.resume_ckpt_path=a.pth").run
    assert (run.resume, run.resume_ckpt_path) == ("a.pth", None)
    assert project(MINIMAL, "run.resume_ckpt_path=null").run.resume is None
    message = problem(MINIMAL, "run.resume_ckpt_path=a.pth", "run.resume=b.pth")
    assert message == "run.resume_ckpt_path (--options): a.pth and run.resume=b.pth differ; keep one"


# A user's own published file

PUBLISHED = (Path(__file__).parent / "fixtures/resolved/published.yaml").read_text()


def test_a_published_file_works_with_one_warning_a_key(project, caplog):
    Path("checkpoint_best.pth").touch()
    cfg = project(PUBLISHED)
    assert cfg.model.init_from == "checkpoint_best.pth"
    entry = cfg.datasets["ucm_caption"]
    assert entry.vis_processor["train"].name == "bita_image_train"
    assert entry.vis_processor["eval"].name == "bita_image_eval"
    assert entry.vis_processor["eval"].std == [1.0, 1.0, 1.0]
    assert entry.text_processor["train"].name == "bita_caption"
    assert entry.text_processor["train"].prompt == "a photo of"
    assert entry.build_info.annotations["test"].ground_truth == "ucm/annotations/test_gt.json"
    assert (cfg.run.init_lr, cfg.run.warmup_lr, cfg.env.cache_root) == (1e-5, 1e-8, "/data/cache")
    mentioned = sorted(message.split(" (")[0] for message in caplog.messages)
    assert mentioned == [
        "datasets.ucm_caption.build_info.annotations.train.md5",
        "datasets.ucm_caption.build_info.annotations.train.url",
        "datasets.ucm_caption.data_type",
        "datasets.ucm_caption.dataset_card",
        "datasets.ucm_caption.text_processor.train.name",
        "datasets.ucm_caption.vis_processor.eval.name",
        "datasets.ucm_caption.vis_processor.train.name",
        "model.apply_lemmatizer",
        "run.dist_url",
        "run.distributed",
        "run.use_dist_eval_sampler",
        "run.world_size",
    ]


def test_a_warning_says_where_and_why(project, caplog):
    project(
        MINIMAL.replace(
            "  ucm_caption:", "  ucm_caption: {data_type: images}\n  rsicd_caption: {data_type: images}"
        )
    )
    assert caplog.messages == [
        "datasets.ucm_caption.data_type (my.yaml:5) and 1 more: has no effect here, all datasets are of images"
    ]


def test_a_prompt_that_is_not_the_models_is_mentioned(project, caplog):
    project(MINIMAL, "datasets.ucm_caption.text_processor.train.prompt='an image of'")
    assert "'an image of' is not model.prompt, 'a photo of'" in caplog.text
