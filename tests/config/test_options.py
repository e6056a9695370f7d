"""What is typed after `--options` is what is taken, and what is printed is read again as the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from bita.config.load import CONFIGS, config_to_dict, config_to_yaml, load_config
from bita.config.schema import Config
from bita.errors import ConfigError
from bita.files import expand

TINY = CONFIGS / "projects/bita/train/caption_ft_tiny.yaml"
STAGE_1 = CONFIGS / "projects/bita/train/pretrain_stage1.yaml"
PROCESSOR = "datasets.synthetic_caption.text_processor.train"


def load(*options: str, path: Path = TINY) -> Config:
    return load_config(path, options, need_files=False)


def value(cfg: Config, key: str) -> object:
    found: object = cfg
    for name in key.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    return found


# Text


@pytest.mark.parametrize(
    "text", ["/tmp/exp #3/out", "007", "1e5", "0x1f", "yes", "off", "2026-11-26", "a: b", "[a", "*x", "!x", "???"]
)  # fmt: skip
@pytest.mark.parametrize("key", ["run.output_dir", "run.dist_url", "model.prompt", f"{PROCESSOR}.prompt"])
def test_a_text_is_taken_as_it_is_typed(key, text):
    assert value(load(f"{key}={text}"), key) == text


@pytest.mark.parametrize(
    ("text", "nullable", "other"),
    [("null", None, "null"), ("", None, ""), ("'null'", "null", "null"), ('""', "", ""), ("''", "", ""),
     ("'a' or 'b'", "'a' or 'b'", "'a' or 'b'"), ('"a\\tb"', "a\tb", "a\tb"), ("~", "~", "~"), (" a ", " a ", " a ")],
)  # fmt: skip
def test_null_or_nothing_empties_what_may_be_empty_and_quotes_are_taken_off(text, nullable, other):
    cfg = load(f"run.dist_url={text}", f"model.prompt={text}")
    assert (cfg.run.dist_url, cfg.model.prompt) == (nullable, other)


def test_texts_inside_lists_and_mappings_too():
    typed = "{templates: [007, '#1 {caption}', yes, a #2], prompt: 1e5}"
    cfg = load(f"datasets.synthetic_caption.text_processor.train={typed}")
    train = cfg.datasets["synthetic_caption"].text_processor["train"]
    assert (train.templates, train.prompt) == (["007", "#1 {caption}", "yes", "a #2"], "1e5")
    assert load("run.train_splits=[train]").run.train_splits == ["train"]


def test_several_files_or_one():
    key = "datasets.synthetic_caption.build_info.annotations.test.storage"
    assert value(load(f"{key}=/d/a #b/c.json"), key) == "/d/a #b/c.json"
    assert value(load(f"{key}=[/d/a #b/c.json, 007.json]"), key) == ["/d/a #b/c.json", "007.json"]


def test_numbers_are_decimal_and_keys_are_text(tmp_path):
    cfg = load(
        "run.seed=010", "run.init_lr=01e-3", "model.vit_args={007: 1, null: 2}", "model.vit_args.2020=x"
    )
    assert (cfg.run.seed, cfg.run.init_lr) == (10, 0.01 / 10)
    assert cfg.model.vit_args == {"007": 1, "null": 2, "2020": "x"}
    (tmp_path / "my.yaml").write_text(
        "model: {arch: bita_opt, model_type: caption_tiny}\nrun: {seed: 010}\n"
        "datasets: {2020: {build_info: {annotations: {train: {storage: a}}, images: {storage: x}}}}\n"
    )
    cfg = load("datasets.2020.cache_images=true", path=tmp_path / "my.yaml")
    assert (cfg.run.seed, list(cfg.datasets), cfg.datasets["2020"].cache_images) == (10, ["2020"], True)


# Paths


def test_paths_are_expanded_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    cfg = load(
        "run.output_dir=~/out",
        "env.cache_root=$SCRATCH/data",
        "env.dataset_configs=[]",
        "model.vit_weights=~/a$b.pth",
        "model.opt_tokenizer=$SCRATCH/tokenizer",
        "model.init_from=https://host/~me/$SCRATCH",
        "datasets.synthetic_caption.build_info.images.storage=~/images",
        "datasets.synthetic_caption.build_info.annotations.test.storage=[$SCRATCH/a.json, ~/b.json]",
        "model.prompt=~ $SCRATCH",
    )
    assert (cfg.run.output_dir, cfg.env.cache_root) == ("/home/me/out", "/scratch/data")
    assert (cfg.model.vit_weights, cfg.model.opt_tokenizer) == ("/home/me/a$b.pth", "/scratch/tokenizer")
    assert cfg.model.init_from == "https://host/~me/$SCRATCH"
    build_info = cfg.datasets["synthetic_caption"].build_info
    assert build_info.images.storage == "/home/me/images"
    assert build_info.annotations["test"].storage == ["/scratch/a.json", "/home/me/b.json"]
    assert cfg.model.prompt == "~ $SCRATCH"


def test_folders_of_datasets_and_model_files_are_expanded_too(monkeypatch, tmp_path):
    monkeypatch.setenv("MINE", str(tmp_path))
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/my.yaml").write_text("datasets: {my: {build_info: {images: {storage: x}}}}")
    (tmp_path / "model.yaml").write_text("model: {num_query_token: 3}")
    storage = "datasets.my.build_info.annotations={train: {storage: a.json}}"
    chosen = (
        "datasets=[my]",
        "run.train_splits=[train]",
        "run.valid_splits=[]",
        "run.test_splits=[]",
        storage,
    )
    cfg = load("env.dataset_configs=[$MINE/sets]", "model.model_type=$MINE/model.yaml", *chosen)
    assert (list(cfg.datasets), cfg.model.num_query_token) == (["my"], 3)


def test_a_variable_may_stand_in_braces_and_one_that_is_not_set_is_said(monkeypatch, caplog):
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.delenv("ABSENT", raising=False)
    cfg = load("env.cache_root=${SCRATCH}/data", "run.output_dir=${SCRATCH}/${run.seed}")
    assert (cfg.env.cache_root, cfg.run.output_dir) == ("/scratch/data", "/scratch/42")
    assert cfg.model.opt_tokenizer == "/scratch/data/tokenizers/opt"
    assert load("run.output_dir=$ABSENT/out").run.output_dir == "$ABSENT/out"
    said = "run.output_dir (--options): $ABSENT is no variable of the environment, so it is part of the name"
    assert [line for line in caplog.messages if "ABSENT" in line] == [said]
    with pytest.raises(
        ConfigError, match=r"^env.cache_root \(--options\): \$\{ABSENT\} is no other key, nor, in a"
    ):
        load("env.cache_root=${ABSENT}/data")


def test_a_text_takes_the_value_of_any_other_key():
    cfg = load("run.name=${run.seed}", "model.prompt=${run.amp}")
    assert (cfg.run.name, cfg.model.prompt) == ("42", "true")


# Mappings, and what belongs to a part


def test_a_free_mapping_replaces_and_a_dotted_key_adds():
    default = load().model.vit_args
    assert set(default) == {"stem_width", "channels", "output_stride"}
    assert load("model.vit_args={}").model.vit_args == {}
    assert load("model.vit_args={stem_width: 4}").model.vit_args == {"stem_width": 4}
    assert load("model.vit_args.stem_width=4").model.vit_args == default | {"stem_width": 4}
    assert load("model.vit_args={}", "model.vit_args.a=1").model.vit_args == {"a": 1}
    assert load("model.opt_config=null").model.opt_config == {}
    size = load("model.bridge_size={layers: 3}").model.bridge_size
    assert (size.layers, size.hidden_size) == (3, 192)


def test_another_encoder_inherits_nothing_of_the_one_before():
    other = load("model.vit_weights=w.pth", "model.vit_model=timm:resnet18").model
    assert (other.vit_args, other.vit_weights) == ({}, "w.pth")
    own = load("model.vit_args={stem_width: 8}", "model.vit_model=timm:resnet18").model
    assert own.vit_args == {"stem_width": 8}
    assert load("model.vit_model=timm:resnet10t").model.vit_args == load().model.vit_args


def test_nor_does_a_language_model_or_a_processor_but_bridges_of_the_same_keys_do():
    assert load("model.opt_config.model_type=gpt2").model.opt_config == {"model_type": "gpt2"}
    assert load("model.opt_model=/my/gpt2").model.opt_tokenizer is None
    assert load("model.opt_model=/my/gpt2", "model.opt_tokenizer=/t").model.opt_tokenizer == "/t"
    sizes = vars(load("model.bridge=qformer").model.bridge_size)
    assert sizes == vars(load().model.bridge_size)
    key = "datasets.synthetic_caption.vis_processor.train"
    train = load(f"{key}.name=bita_image_eval").datasets["synthetic_caption"].vis_processor["train"]
    assert (train.name, train.mean) == ("bita_image_eval", None)


def test_a_printed_configuration_keeps_what_was_emptied(tmp_path):
    emptied = ("model.vit_args={}", "model.opt_config={model_type: gpt2}")
    cfg = load(*emptied, "datasets.synthetic_caption.synthetic={seed: 1}")
    (tmp_path / "config.yaml").write_text(config_to_yaml(cfg))
    assert load(path=tmp_path / "config.yaml") == cfg
    assert load("model.vit_model=timm:resnet18", path=tmp_path / "config.yaml").model.vit_args == {}


# Thousands of them

CARD = "datasets.synthetic_caption.dataset_card"
DATASET, SPLITS = "datasets.synthetic_caption", ("train", "val", "test")
TEXT_KEYS = ("run.output_dir", CARD, "run.dist_url", "model.prompt", "model.vit_weights", "model.opt_tokenizer",
             "model.text_tokenizer", "model.text_model", "env.cache_root", "env.spice_dir", f"{PROCESSOR}.prompt",
             f"{DATASET}.text_processor.eval.prompt", f"{DATASET}.build_info.images.storage",
             *(f"{DATASET}.build_info.annotations.{split}.ground_truth" for split in SPLITS))  # fmt: skip
ANY_KEYS = (*TEXT_KEYS, "run.name",
            "run.seed", "run.init_lr", "run.amp", "run.train_splits", "run", "model", "datasets", "imports",
            "model.vit_args", "model.vit_args.x", "model.opt_config", "model.lora", "model.vit_layers", "model.bridge",
            "model.bridge_size", "run.train_dataset_ratios", "run.device", "datasets.synthetic_caption", "env",
            "datasets.synthetic_caption.synthetic", "datasets.7", "preprocess.vis_processor", "model.arch",
            "model.model_type", "datasets.synthetic_caption.build_info.annotations.test.storage")  # fmt: skip
TOKENS = st.sampled_from(
    ["null", "~", "yes", "off", "true", "007", "0x1f", "1e5", ".inf", ".nan", "1:30", "2026-11-26", "???", "=", "<<",
     "#", ":", ",", "-", "[", "]", "{", "}", "&", "*", "!", "|", ">", "%", "@", "`", "'", '"', "\\", "$", "\n", "é",
     "😀", "\x85", "\u2028", "\ufeff", "\udcff", "\\${", "$HOME", "${run.seed}", "!!int", "!!set", "!!binary", "---",
     "...", "train", "val", "a: "]
)  # fmt: skip
LETTERS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
TYPED = st.one_of(LETTERS, st.lists(st.one_of(TOKENS, st.just(" "), LETTERS), max_size=8).map("".join))
SETTINGS = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def expected(key: str, text: str) -> str | None:
    """What a text key takes of a text without quotes and references."""
    nullable = key not in ("run.output_dir", "model.prompt", "env.cache_root")
    if nullable and text in ("", "null"):
        return None
    return text if "prompt" in key or key in (CARD, "run.dist_url") else expand(text)


def no_reference(text: str) -> bool:
    return "${" not in text and not (len(text) > 1 and text[0] == text[-1] and text[0] in "'\"")


def round_trip(texts: list[str], path: Path) -> None:
    needed = ("run.output_dir", "env.cache_root")  # an empty one is refused
    bytes_too = {
        key for key in TEXT_KEYS if "prompt" not in key and key not in (CARD, "run.dist_url", needed[0])
    }
    texts = [
        (text if key in bytes_too else text.replace("\udcff", "")) or "." * (key in needed)
        for key, text in zip(TEXT_KEYS, texts, strict=True)
    ]
    options = [f"{key}={text}" for key, text in zip(TEXT_KEYS, texts, strict=True)]
    cfg = load(*options)
    for key, text in zip(TEXT_KEYS, texts, strict=True):
        assert value(cfg, key) == expected(key, text), (key, text)
    path.write_text(config_to_yaml(cfg), encoding="utf-8")
    assert config_to_dict(load(path=path)) == config_to_dict(cfg)


def one_line_or_a_configuration(options: list[str], path: Path) -> None:
    try:
        cfg = load(*options)
    except ConfigError as error:
        said = str(error)
    else:
        path.write_text(config_to_yaml(cfg), encoding="utf-8")
        assert config_to_dict(load(path=path)) == config_to_dict(cfg)
        said = ""
    assert "\n" not in said


TEXTS = st.lists(TYPED.filter(no_reference), min_size=len(TEXT_KEYS), max_size=len(TEXT_KEYS))
OPTIONS = st.lists(st.tuples(st.sampled_from(ANY_KEYS), TYPED).map("=".join), min_size=1, max_size=5)


@settings(SETTINGS, max_examples=15)
@given(texts=TEXTS)
@example(texts=["\x85😀", "\x85", "\u2028a", " ", "\n", "\ufeff", "\t", "a\x85"] * 2)
def test_texts_come_back_as_they_were_typed(tmp_path_factory, texts):
    round_trip(texts, tmp_path_factory.getbasetemp() / "printed.yaml")


@settings(SETTINGS, max_examples=60)
@given(options=OPTIONS)
@example(options=["run.output_dir=a\\${b"])
@example(options=["model=text"])
@example(options=["datasets.synthetic_caption.vis_processor.train=text"])
def test_anything_typed_is_one_line_or_a_configuration(tmp_path_factory, options):
    one_line_or_a_configuration(options, tmp_path_factory.getbasetemp() / "printed.yaml")


@pytest.mark.long
@settings(SETTINGS, max_examples=625)
@given(texts=TEXTS)
def test_ten_thousand_texts(tmp_path_factory, texts):
    round_trip(texts, tmp_path_factory.getbasetemp() / "printed.yaml")


@pytest.mark.long
@settings(SETTINGS, max_examples=3400)
@given(options=OPTIONS)
def test_ten_thousand_options(tmp_path_factory, options):
    one_line_or_a_configuration(options, tmp_path_factory.getbasetemp() / "printed.yaml")


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("run.loggers=[jsonl]", "run.loggers (--options): wanted names with their keys, such as {jsonl: {}}"),
        ("run.metrics=CIDEr", "run.metrics (--options): wanted names with their keys, such as {Bleu: {}}, not a text"),
        ("run.metrics={cider: {}}", "run.metrics.cider (--options): unknown metric 'cider'; did you mean 'CIDEr'?"),
        ("run.loggers={jsonl: 7}", "run.loggers.jsonl (--options): wanted no keys, since there are none here"),
        ("run.seed=18446744073709551616", "run.seed (--options): wanted a whole number of at most 64 bits"),
        ("run.num_workers=100000", "run.num_workers (--options): must be at most 1024, not 100000"),
        ("run.output_dir=", "run.output_dir (--options): is empty; name a path, such as . for the current folder"),
        ("run.output_dir=${", r"run.output_dir (--options): no viable alternative at input '${'; write \${ for"),
        ("run.output_dir=/tmp/\udce9", r"run.output_dir (--options): '/tmp/\udce9' holds bytes that are not UTF-8"),
        ("model.prompt=\udce9", r"model.prompt (--options): '\udce9' holds half of a character, or bytes"),
        ("run.num_captions=9", "run.num_captions (--options): 9 needs run.num_beams of at least as many, not 5"),
        ("run.name=..", "run.name (--options): '..' cannot be a folder's name in run.output_dir"),
        ("run.name=a/b", "run.name (--options): 'a/b' cannot be a folder's name"),
        ("run.name=latest", "run.name (--options): 'latest' cannot be a folder's name"),
        ("run={seed: 3, seed: 4}", "--options: the value of run is not plain YAML (a key stands twice)"),
        ("datasets=[ucm_caption, ucm_caption]", "datasets (--options): names ucm_caption twice; keep one"),
        ("datasets.synthetic_caption.vis_processor.eval=null",
         "datasets.synthetic_caption.vis_processor.eval.name (--options): is missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_says_why(option, expected):
    with pytest.raises(ConfigError) as caught:
        load(option)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('run: {name: "a\\0b"}', "run.name (my.yaml:2): holds a zero byte"),
        ("model: {arch: bita_opt, model_type: 7}", "model.model_type (my.yaml:2): wanted a text, not a whole"),
        ("imports: [./my_module.py]", "imports (my.yaml:2): './my_module.py' is no module's name; write it as after"),
        ("imports: [ends_at_once]", "imports (my.yaml:2): ends_at_once cannot be imported (SystemExit: 3)"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_say(tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    Path("ends_at_once.py").write_text("raise SystemExit(3)")
    Path("my.yaml").write_text(f"base: {TINY}\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load(path=Path("my.yaml"))
    assert str(caught.value).startswith(expected)


def test_a_shipped_file_is_a_base_from_any_folder(tmp_path):
    (tmp_path / "my.yaml").write_text(
        "base: configs/projects/bita/train/caption_ft_tiny.yaml\nrun: {seed: 5}"
    )
    assert load(path=tmp_path / "my.yaml").run.seed == 5
