"""What types cannot say: names, ranges, keys that must fit each other, files that must be there."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bita.checkpoint import resolve_checkpoint, split_choice, unfinished, weights_problem
from bita.config.layers import Keys, Places
from bita.config.run import RunConfig
from bita.config.schema import Config, DatasetConfig, EnvConfig
from bita.config.types import unknown, wrong
from bita.errors import ConfigError, UserError, no_file
from bita.packages import SCHEME, find

LOG = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
MODES = ("train", "eval")
AUTO = "auto"
SHARD_INDEX = ".shards.json"
"""How the name of an index of shards ends."""
SYNTHETIC = ("train", "val", "test", "size", "seed")


def check(cfg: Config, places: Places, declared: Mapping[str, Iterable[str]]) -> None:
    """Check all but files.

    Args:
        cfg: typed, its weights and resume settled.
        places: where each key stands.
        declared: dataset → splits that its defaults declare.

    Raises:
        ConfigError: the first thing that is wrong.
    """
    _check_modes(cfg, places)
    _check_datasets(cfg, places, declared)
    _check_splits(cfg, places)
    _check_fit(cfg, places)
    for name, reason in _idle(cfg):
        value = getattr(cfg.run, name)
        LOG.warning("%s", wrong(("run", name), places, f"{value} has no effect: {reason}"))


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


def _check_modes(cfg: Config, places: Places) -> None:
    """Processors are of training or of evaluation."""
    for dataset, entry in cfg.datasets.items():
        for kind in ("vis_processor", "text_processor"):
            for mode in getattr(entry, kind):
                if mode not in MODES:
                    raise unknown(("datasets", dataset, kind, mode), "mode", mode, MODES, places)


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


def splits_in_use(run: RunConfig) -> list[str]:
    """Return the splits that a run reads, each once; an evaluation reads its test splits only."""
    keys = ("test_splits",) if run.evaluate else ("train_splits", "valid_splits", "test_splits")
    return list(dict.fromkeys(split for key in keys for split in getattr(run, key)))


def _check_splits(cfg: Config, places: Places) -> None:
    """Every split that the run uses is declared by every dataset, and can be used so."""
    used = ("test_splits",) if cfg.run.evaluate else ("train_splits", "valid_splits", "test_splits")
    if not getattr(cfg.run, used[0]):
        raise wrong(("run", used[0]), places, f"names no split; set it, such as [{used[0].split('_')[0]}]")
    for key in used:
        for split in getattr(cfg.run, key):
            for name, entry in cfg.datasets.items():
                declared = entry.build_info.annotations
                if split not in declared:
                    raise unknown(("run", key), f"split of {name}", split, declared, places)
                if key != "train_splits" and is_sharded(declared[split].storage):
                    problem = (
                        f"{split} of {name} is stored as shards, which can be trained on, not evaluated; "
                    )
                    raise wrong(("run", key), places, f"{problem}name a split with image files")


def is_sharded(storage: str | list[str] | None) -> bool:
    """Return whether a split's storage names an index of shards."""
    paths = [storage] if isinstance(storage, str) else storage or []
    return any(str(path).endswith(SHARD_INDEX) for path in paths)


def _check_fit(cfg: Config, places: Places) -> None:
    """Keys that must suit each other."""
    if cfg.run.task_args.needs_captions and not cfg.model.writes_captions:
        problem = f"{cfg.run.task} needs a model that writes captions, such as model.arch=bita_opt: {cfg.model.arch}"
        raise wrong(("run", "task"), places, f"{problem} writes none")
    if cfg.run.parallel == "fsdp" and not cfg.model.has_language_model:
        problem = f"fsdp cuts up the language model, and {cfg.model.arch} has none; use ddp"
        raise wrong(("run", "parallel"), places, problem)
    if cfg.run.parallel == "fsdp" and cfg.run.task_args.writes_in_training and not cfg.run.evaluate:
        problem = f"fsdp cuts up the language model, which {cfg.run.task} writes with in every step; use ddp"
        raise wrong(("run", "parallel"), places, problem)
    if cfg.run.evaluate and cfg.model.init_from is None:
        raise wrong(("model", "init_from"), places, "is not set; name the run or checkpoint to evaluate")
    if getattr(cfg.model, "lm_quantize", "none") != "none" and not cfg.run.evaluate:
        problem = "8 and 4 bit are for evaluation and captioning; train without"
        raise wrong(("model", "lm_quantize"), places, problem)
    if cfg.run.cache_features is not None and not cfg.model.freeze_vit:
        problem = "keeps what a frozen encoder says; set it to null, or model.freeze_vit=true"
        raise wrong(("run", "cache_features"), places, problem)
    cached = [
        f"datasets.{name}.cache_images=false" for name, entry in cfg.datasets.items() if entry.cache_images
    ]
    if cfg.run.cache_features is not None and not cfg.run.evaluate:
        cached.append("run.cache_features=null")
    if cfg.run.on_bad_image == "skip" and cached:
        problem = f"cached ones are all opened at the start; set {cached[0]}"
        raise wrong(
            ("run", "on_bad_image"), places, f"skip needs images that are read as they come: {problem}"
        )
    _check_captions_per_image(cfg, places)
    for name, entry in cfg.datasets.items():
        text = entry.text_processor.get("train")
        own = getattr(text, "prompt", None)
        if own is not None and own.strip() != cfg.model.prompt.strip():
            prompt = ("datasets", name, "text_processor", "train", "prompt")
            problem = f"{own!r} is not model.prompt, {cfg.model.prompt!r}, whose tokens carry no loss"
            LOG.warning("%s", wrong(prompt, places, problem))


def _idle(cfg: Config) -> Iterator[tuple[str, str]]:
    """(key of `run` that was set and changes nothing beside the others, why)."""
    run = cfg.run
    drawn, number = run.use_nucleus_sampling, "num_captions" if run.use_nucleus_sampling else "num_beams"
    one = getattr(run, number) == 1
    idle = {
        "top_p": "" if drawn else "it is of drawn captions; set run.use_nucleus_sampling=true",
        "temperature": "" if drawn else "it is of drawn captions; set run.use_nucleus_sampling=true",
        "length_penalty": "it is of a search with several beams" if drawn or one else "",
        "choose_by": f"one caption leaves no choice; set run.{number} above 1" if one else "",
        "views": "",
    }
    silent = "" if cfg.model.writes_captions else f"{cfg.model.arch} writes no captions"
    for name, reason in idle.items():
        if (reason or silent) and getattr(run, name) != getattr(RunConfig, name):
            yield name, silent or reason


def _check_captions_per_image(cfg: Config, places: Places) -> None:
    """One number for all training sets, which the contrast can bear."""
    numbers = {name: entry.captions_per_image or 1 for name, entry in cfg.datasets.items()}
    for name in cfg.datasets:
        key = ("datasets", name, "captions_per_image")
        if len(set(numbers.values())) > 1 and not cfg.run.evaluate:
            found = ", ".join(f"{other} has {number}" for other, number in numbers.items())
            raise wrong(key, places, f"must be the same for all training sets ({found})")
        if numbers[name] > 1 and cfg.model.one_positive():
            problem = "counts an image's other captions as wrong ones; set model.itc_positives=same_image"
            LOG.warning("%s", wrong(key, places, f"{numbers[name]} {problem}"))


def _missing_files(cfg: Config) -> Iterator[tuple[Keys, str]]:
    """(key, what is wrong with the path that it names)."""
    model, run = cfg.model, cfg.run
    for keys, path in ((("model", "init_from"), model.init_from), (("run", "resume"), run.resume)):
        if path is None or "://" in path or (keys[1] == "resume" and (path == AUTO or run.evaluate)):
            continue
        try:
            found = resolve_checkpoint(split_choice(path)[0])
            problem = _other_file(found)
            if problem is not None:
                yield keys, f"checkpoint {path}: {problem}"
                continue
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
    for key in ("vit_weights", "text_model", "text_tokenizer", "opt_model", "opt_tokenizer"):
        source = getattr(model, key, None)
        if source is not None and source.startswith(SCHEME):
            try:
                find(f"model.{key}", source)
            except ConfigError as error:
                yield ("model", key), str(error).removeprefix(f"model.{key}={source}: ")
    if (
        model.vit_weights is not None
        and not model.vit_weights.startswith(SCHEME)
        and "://" not in model.vit_weights
    ):
        path = split_choice(model.vit_weights)[0]
        problem = _other_file(Path(path)) if Path(path).exists() else "no such file or folder"
        if problem is not None:
            yield ("model", "vit_weights"), f"{path}: {problem}"
    folders = model.folders
    for key in (*folders, "text_model") if model.init_from is None else folders:
        path = getattr(model, key)
        if path is None or not _is_local(path, cfg.env.cache_root) or Path(path).is_dir():
            continue
        if key == "text_model" and Path(split_choice(path)[0]).is_file():
            continue
        if not (path.endswith(".gguf") and Path(path).is_file()):
            yield ("model", key), f"{path}: no such folder"


def _other_file(path: Path) -> str | None:
    """Return what a file is instead of weights; that it is empty is said when it is read."""
    return weights_problem(path) if path.is_file() and path.stat().st_size else None


def check_annotations(cfg: Config) -> None:
    """Raise ConfigError where an annotation file of a split in use is not there; synthetic ones are drawn later."""
    for name, entry in cfg.datasets.items():
        for split in sorted(splits_in_use(cfg.run)):
            for path in annotation_paths(name, entry, cfg.env, split):
                if not entry.synthetic:
                    check_annotation(name, split, path)


def data_path(env: EnvConfig, path: str) -> Path:
    """Return a path of a dataset's entry, which starts at the cache root unless it is absolute."""
    return Path(env.cache_root) / path


def annotation_paths(name: str, entry: DatasetConfig, env: EnvConfig, split: str) -> list[Path]:
    """Return the annotation files of a declared split, there or not; raises ConfigError where the entry names none."""
    storage = entry.build_info.annotations[split].storage
    paths = [storage] if isinstance(storage, str) else storage
    if not paths:
        raise ConfigError(f"{_storage_key(name, split)}: name an annotation file, or a list of them")
    return [data_path(env, path) for path in paths]


def check_annotation(name: str, split: str, path: Path) -> None:
    """Raise ConfigError where an annotation file is not there, saying how to prepare it."""
    if path.is_dir():
        raise ConfigError(f"{_storage_key(name, split)}: {path}: {no_file(path)}")
    if not path.is_file():
        command = f"python -m bita.prepare {name} SOURCE {path.parent.parent}"
        raise ConfigError(f"{_storage_key(name, split)}: {path} is missing; prepare it: {command}")


def _storage_key(name: str, split: str) -> str:
    return f"datasets.{name}.build_info.annotations.{split}.storage"


def _is_local(path: str, cache_root: str) -> bool:
    """Return whether this can only be a path: names of the hub have at most one slash, and none in front."""
    if path.startswith(SCHEME):
        return False
    return path.startswith(("/", ".", f"{cache_root}/")) or path.count("/") > 1 or path.endswith(".gguf")


def check_imports(modules: object, places: Places) -> list[str]:
    """Return the `imports` of a project file, as a list of module names.

    Raises:
        ConfigError: they are something else.
    """
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise wrong(("imports",), places, "wanted a list of modules, such as [my_models]")
    for name in modules:
        if not all(part.isidentifier() for part in name.split(".")):
            problem = f"{name!r} is no module's name; write it as after Python's import, such as my_models"
            raise wrong(("imports",), places, problem)
    return modules
