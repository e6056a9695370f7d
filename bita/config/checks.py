"""What types cannot say: names, ranges, keys that must fit each other, files that must be there."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bita import registry
from bita.checkpoint import resolve_checkpoint, unfinished
from bita.config.layers import Keys, Places
from bita.config.schema import Config, DatasetConfig, EnvConfig
from bita.config.types import unknown, wrong
from bita.errors import ConfigError, UserError

LOG = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
MODES = ("train", "eval")
AUTO = "auto"
SYNTHETIC = ("train", "val", "test", "size", "seed")
AT_LEAST: dict[Keys, float] = {
    ("model", "image_size"): 1,
    ("model", "num_query_token"): 1,
    ("model", "embed_dim"): 1,
    ("model", "max_txt_len"): 1,
    ("model", "label_smoothing"): 0,
    ("model", "drop_path_rate"): 0,
    ("run", "max_epoch"): 1,
    ("run", "batch_size_train"): 1,
    ("run", "batch_size_eval"): 1,
    ("run", "num_workers"): 0,
    ("run", "accum_grad_iters"): 1,
    ("run", "init_lr"): 0,
    ("run", "min_lr"): 0,
    ("run", "warmup_lr"): 0,
    ("run", "warmup_steps"): 0,
    ("run", "weight_decay"): 0,
    ("run", "beta2"): 0,
    ("run", "num_beams"): 1,
    ("run", "num_captions"): 1,
    ("run", "max_len"): 2,
    ("run", "seed"): 0,
    ("run", "min_len"): 0,
    ("run", "validate_every"): 1,
    ("run", "log_freq"): 1,
    ("run", "keep_last"): 1,
    ("run", "cache_features"): 1,
    ("run", "max_bad_fraction"): 0,
}
BELOW: dict[Keys, float] = {
    ("model", "label_smoothing"): 1,
    ("model", "drop_path_rate"): 1,
    ("run", "beta2"): 1,
}
LOCAL_FOLDERS = {"bita_former": ("text_tokenizer",), "bita_opt": ("opt_model", "opt_tokenizer")}
"""Keys that name a folder or a name of the hub, by arch."""


def check(cfg: Config, places: Places, declared: Mapping[str, Iterable[str]]) -> None:
    """Check all but files.

    Args:
        cfg: typed, its weights and resume settled.
        places: where each key stands.
        declared: dataset → splits that its defaults declare.

    Raises:
        ConfigError: the first thing that is wrong.
    """
    _check_names(cfg, places)
    _check_ranges(cfg, places)
    _check_datasets(cfg, places, declared)
    _check_splits(cfg, places)
    _check_fit(cfg, places)


def check_files(cfg: Config, places: Places, *, only_warn: bool = False) -> None:
    """Check that checkpoints and weights are there; paths that start with a scheme (https://…) are not looked at.

    Raises:
        ConfigError: one is not, unless `only_warn`.
    """
    for keys, problem in _missing_files(cfg):
        error = wrong(keys, places, problem)
        if not only_warn:
            raise error
        LOG.warning("%s", error)


def check_encoder_has_weights(cfg: Config) -> None:
    """Raise ConfigError where a frozen vision encoder would stay random."""
    if cfg.model.freeze_vit and cfg.model.vit_weights is None and cfg.model.init_from is None:
        raise ConfigError(
            "model.vit_weights: names no file, so the frozen vision encoder would stay random; set it, or "
            "model.freeze_vit=false to train it"
        )


def _check_names(cfg: Config, places: Places) -> None:
    """Names that stand for classes."""
    for key, names in (
        ("task", registry.tasks),
        ("runner", registry.runners),
        ("lr_sched", registry.schedules),
    ):
        name = getattr(cfg.run, key)
        if name not in names:
            raise unknown(("run", key), names.kind, name, names.names(), places)
    known = registry.processors
    for dataset, entry in cfg.datasets.items():
        for kind in ("vis_processor", "text_processor"):
            for mode, processor in getattr(entry, kind).items():
                keys = ("datasets", dataset, kind, mode)
                if mode not in MODES:
                    raise unknown(keys, "mode", mode, MODES, places)
                if processor.name not in known:
                    raise unknown((*keys, "name"), known.kind, processor.name, known.names(), places)
    if not cfg.model.vit_model.startswith("timm:") and cfg.model.vit_model not in ("clip_L", "eva_clip_g"):
        known_encoders = ("clip_L", "eva_clip_g", "timm:NAME")
        raise unknown(("model", "vit_model"), "vision encoder", cfg.model.vit_model, known_encoders, places)


def _check_ranges(cfg: Config, places: Places) -> None:
    for name in (
        "hidden_size",
        "layers",
        "heads",
        "intermediate_size",
        "max_positions",
        "cross_attention_every",
    ):
        value = getattr(cfg.model.bridge_size, name)
        if value is not None and value < 1:
            raise wrong(("model", "bridge_size", name), places, "must be at least 1")
    if not 0 <= cfg.model.bridge_size.dropout < 1:
        raise wrong(("model", "bridge_size", "dropout"), places, "must be from 0 to below 1")
    for keys, low in AT_LEAST.items():
        value = getattr(getattr(cfg, keys[0]), keys[1])
        if value is not None and value < low:
            raise wrong(keys, places, f"must be at least {low:g}, not {value}")
    for keys, high in BELOW.items():
        value = getattr(getattr(cfg, keys[0]), keys[1])
        if value >= high:
            raise wrong(keys, places, f"must be below {high:g}, not {value}")
    layers = cfg.model.vit_layers
    if any(number < 1 for number in layers) or sorted(set(layers)) != layers:
        raise wrong(
            ("model", "vit_layers"), places, f"must be block numbers from 1 in rising order, not {layers}"
        )
    if cfg.run.min_len > cfg.run.max_len:
        raise wrong(
            ("run", "min_len"), places, f"{cfg.run.min_len} is more than run.max_len, {cfg.run.max_len}"
        )
    if not 0 < cfg.run.top_p <= 1:
        raise wrong(("run", "top_p"), places, f"must be above 0 and at most 1, not {cfg.run.top_p}")
    if cfg.run.temperature <= 0:
        raise wrong(("run", "temperature"), places, f"must be above 0, not {cfg.run.temperature}")


def _check_datasets(cfg: Config, places: Places, declared: Mapping[str, Iterable[str]]) -> None:
    """Splits that are described but nowhere declared or asked for are typing errors; so are other odd names."""
    asked = {*cfg.run.train_splits, *cfg.run.valid_splits, *cfg.run.test_splits}
    for name, entry in cfg.datasets.items():
        known = {*SPLITS, *declared.get(name, ()), *asked}
        for split in entry.build_info.annotations:
            if split not in known:
                keys = ("datasets", name, "build_info", "annotations", split)
                raise unknown(keys, "split", split, known, places)
        for key in entry.synthetic:
            if key not in SYNTHETIC:
                raise unknown(("datasets", name, "synthetic", key), "key", key, SYNTHETIC, places)
    for name in cfg.run.train_dataset_ratios or {}:
        if name not in cfg.datasets:
            raise unknown(("run", "train_dataset_ratios", name), "dataset", name, cfg.datasets, places)


def _check_splits(cfg: Config, places: Places) -> None:
    """Every split that the run uses is declared by every dataset."""
    used = ("test_splits",) if cfg.run.evaluate else ("train_splits", "valid_splits", "test_splits")
    if not getattr(cfg.run, used[0]):
        raise wrong(("run", used[0]), places, f"names no split; set it, such as [{used[0].split('_')[0]}]")
    for key in used:
        for split in getattr(cfg.run, key):
            for name, entry in cfg.datasets.items():
                if split not in entry.build_info.annotations:
                    raise unknown(
                        ("run", key), f"split of {name}", split, entry.build_info.annotations, places
                    )


def _check_fit(cfg: Config, places: Places) -> None:
    """Keys that must suit each other."""
    if cfg.run.task == "captioning" and cfg.model.arch == "bita_former":
        raise wrong(
            ("run", "task"), places, "captioning needs model.arch=bita_opt: bita_former writes no captions"
        )
    if cfg.run.parallel == "fsdp" and cfg.model.arch == "bita_former":
        raise wrong(
            ("run", "parallel"), places, "fsdp cuts up the language model, and bita_former has none; use ddp"
        )
    if cfg.run.evaluate and cfg.model.init_from is None:
        raise wrong(("model", "init_from"), places, "is not set; name the run or checkpoint to evaluate")
    if cfg.model.lora is not None and not cfg.model.freeze_lm:
        raise wrong(("model", "lora"), places, "is for a frozen language model; set model.freeze_lm=true")
    if cfg.model.lora is not None and cfg.model.lora.r < 1:
        raise wrong(("model", "lora", "r"), places, f"must be at least 1, not {cfg.model.lora.r}")
    if cfg.model.lm_quantize != "none" and not cfg.run.evaluate:
        problem = "8 and 4 bit are for evaluation and captioning; train without"
        raise wrong(("model", "lm_quantize"), places, problem)
    if cfg.run.lr_sched == "linear_warmup_step_lr" and cfg.run.lr_decay_rate is None:
        raise wrong(("run", "lr_decay_rate"), places, "linear_warmup_step_lr needs it, such as 0.9")
    if cfg.run.cache_features is not None and not cfg.model.freeze_vit:
        problem = "keeps what a frozen encoder says; set it to null, or model.freeze_vit=true"
        raise wrong(("run", "cache_features"), places, problem)
    cached = [name for name, entry in cfg.datasets.items() if entry.cache_images]
    if cfg.run.on_bad_image == "skip" and cached:
        problem = f"cached images are all opened at the start; set datasets.{cached[0]}.cache_images=false"
        raise wrong(
            ("run", "on_bad_image"), places, f"skip needs images that are read as they come: {problem}"
        )
    _check_losses(cfg, places)
    size = cfg.model.bridge_size
    if size.hidden_size % size.heads:
        keys = ("model", "bridge_size", "heads")
        raise wrong(keys, places, f"{size.heads} heads do not divide hidden_size, {size.hidden_size}")
    if cfg.model.max_txt_len > size.max_positions and cfg.model.arch == "bita_former":
        raise wrong(
            ("model", "max_txt_len"), places, f"is more than bridge_size.max_positions, {size.max_positions}"
        )
    _check_captions_per_image(cfg, places)
    for name, entry in cfg.datasets.items():
        text = entry.text_processor.get("train")
        if text is not None and text.prompt is not None and text.prompt.strip() != cfg.model.prompt.strip():
            prompt = ("datasets", name, "text_processor", "train", "prompt")
            problem = f"{text.prompt!r} is not model.prompt, {cfg.model.prompt!r}, whose tokens carry no loss"
            LOG.warning("%s", wrong(prompt, places, problem))


def _check_captions_per_image(cfg: Config, places: Places) -> None:
    """One number for all training sets, which the contrast can bear."""
    numbers = {name: entry.captions_per_image or 1 for name, entry in cfg.datasets.items()}
    for name, entry in cfg.datasets.items():
        key = ("datasets", name, "captions_per_image")
        if entry.captions_per_image is not None and entry.captions_per_image < 1:
            raise wrong(key, places, "must be at least 1, or null")
        if len(set(numbers.values())) > 1 and not cfg.run.evaluate:
            found = ", ".join(f"{other} has {number}" for other, number in numbers.items())
            raise wrong(key, places, f"must be the same for all training sets ({found})")
        if numbers[name] > 1 and cfg.model.arch == "bita_former" and cfg.model.itc_positives == "pair":
            problem = "counts an image's other captions as wrong ones; set model.itc_positives=same_image"
            LOG.warning("%s", wrong(key, places, f"{numbers[name]} {problem}"))


def _check_losses(cfg: Config, places: Places) -> None:
    """The losses of stage 1 that can be had with the bridge."""
    keys, weights = ("model", "loss_weights"), cfg.model.loss_weights
    for name in ("itc", "itm", "itg"):
        if (getattr(weights, name) or 0) < 0:
            raise wrong((*keys, name), places, "must be at least 0")
    losses = weights.in_force(cfg.model.bridge)
    if "itg" in losses and cfg.model.bridge == "ift":
        problem = (
            "captioning needs a causal mask, which the Fourier mix has not; set 0, or model.bridge=qformer"
        )
        raise wrong((*keys, "itg"), places, problem)
    if not {"itc", "itm"} & losses.keys():
        problem = "without itc and itm the queries' last layer learns nothing; set one of them above 0"
        raise wrong(keys, places, problem)


def _missing_files(cfg: Config) -> Iterator[tuple[Keys, str]]:
    """(key, what is wrong with the path that it names)."""
    model, run = cfg.model, cfg.run
    for keys, path in ((("model", "init_from"), model.init_from), (("run", "resume"), run.resume)):
        if path is None or "://" in path or (keys[1] == "resume" and path == AUTO):
            continue
        try:
            resolve_checkpoint(path)
            note = unfinished(path) if keys[1] == "init_from" else None
            if note is not None:
                LOG.warning("model.init_from: %s", note)
        except UserError as error:
            hint = (
                f" (or write {AUTO})"
                if keys[1] == "resume"
                else "; train the stage before, or name a checkpoint"
            )
            yield keys, f"{error}{hint}"
    if (
        model.vit_weights is not None
        and "://" not in model.vit_weights
        and not Path(model.vit_weights).exists()
    ):
        yield ("model", "vit_weights"), f"{model.vit_weights}: no such file or folder"
    folders = LOCAL_FOLDERS.get(model.arch, ())
    for key in (*folders, "text_model") if model.init_from is None else folders:
        path = getattr(model, key)
        if path is None or not _is_local(path, cfg.env.cache_root) or Path(path).is_dir():
            continue
        if not (path.endswith(".gguf") and Path(path).is_file()):
            yield ("model", key), f"{path}: no such folder"


def check_annotations(cfg: Config) -> None:
    """Raise ConfigError where an annotation file of a split in use is not there; synthetic ones are drawn later."""
    run = cfg.run
    splits = {*(run.train_splits if not run.evaluate else ()), *run.valid_splits, *run.test_splits}
    for name, entry in cfg.datasets.items():
        for split in sorted(splits & entry.build_info.annotations.keys()):
            for path in annotation_paths(name, entry, cfg.env, split):
                if not entry.synthetic:
                    check_annotation(name, split, path)


def data_path(env: EnvConfig, path: str) -> Path:
    """A path of a dataset's entry, which starts at the cache root unless it is absolute."""
    return Path(env.cache_root).expanduser() / Path(path).expanduser()


def annotation_paths(name: str, entry: DatasetConfig, env: EnvConfig, split: str) -> list[Path]:
    """The annotation files of a declared split, there or not; raises ConfigError where the entry names none."""
    storage = entry.build_info.annotations[split].storage
    paths = [storage] if isinstance(storage, str) else storage
    if not paths or not all(isinstance(path, str) for path in paths):
        raise ConfigError(f"{_storage_key(name, split)}: name an annotation file, or a list of them")
    return [data_path(env, path) for path in paths]


def check_annotation(name: str, split: str, path: Path) -> None:
    """Raise ConfigError where an annotation file is not there, saying how to prepare it."""
    if not path.is_file():
        command = f"python scripts/prepare_data.py {name} SOURCE {path.parent.parent}"
        raise ConfigError(f"{_storage_key(name, split)}: {path} is missing; prepare it: {command}")


def _storage_key(name: str, split: str) -> str:
    return f"datasets.{name}.build_info.annotations.{split}.storage"


def _is_local(path: str, cache_root: str) -> bool:
    """Whether this can only be a path: names of the hub have at most one slash, and none in front."""
    return path.startswith(("/", ".", "~", f"{cache_root}/")) or path.count("/") > 1 or path.endswith(".gguf")


def check_imports(modules: object, places: Places) -> list[str]:
    """The `imports` of a project file, as a list of module names.

    Raises:
        ConfigError: they are something else, or stand in `--options`.
    """
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise wrong(("imports",), places, "wanted a list of modules, such as [my_models]")
    if places.get(("imports",)) == "--options":
        raise ConfigError("imports (--options): modules to import can only stand in a project file")
    return modules
