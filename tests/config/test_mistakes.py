"""Mistakes in a configuration: each is one line that says what, where, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from bita.config.load import CONFIGS, config_from_dict, config_to_dict, load_config
from bita.errors import ConfigError
from tests.config.conftest import MINIMAL

FULL = CONFIGS / "projects/bita/train/pretrain_stage1.yaml"
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


def test_fsdp_needs_steps_that_all_processes_take_alike(problem):
    options = ("run.task=captioning_scst", "run.train_splits=[train]", "run.parallel=fsdp")
    assert problem(MINIMAL, *options).startswith(
        "run.parallel (--options): fsdp cuts up the language model, which captioning_scst writes with in every step"
    )


def test_cached_images_cannot_be_left_out_as_they_come(problem):
    options = ("datasets.ucm_caption.cache_images=true", "run.on_bad_image=skip")
    assert "set datasets.ucm_caption.cache_images=false" in problem(MINIMAL, *options)
    kept = ("run.cache_features=2", "run.on_bad_image=skip")
    assert "set run.cache_features=null" in problem(MINIMAL, "run.train_splits=[train]", *kept)


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


def test_a_project_file_that_is_missing(tmp_path):
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
