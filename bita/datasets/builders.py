"""Configured datasets: a name and its entry to a `CaptionDataset`. A new dataset is an entry, never a class."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from bita.config.checks import annotation_paths, check_annotation, data_path, is_sharded, splits_in_use
from bita.config.published import DEFAULT_PROCESSORS
from bita.config.schema import ArchConfig, Config, DatasetConfig, EnvConfig, ProcessorConfig, SplitConfig
from bita.datasets.annotations import CaptionRecord, read_annotations, read_ground_truth
from bita.datasets.cache import TRAIN_MARGIN, PixelCache, cache_folder, open_cache
from bita.datasets.captions import CaptionDataset, Processors, Split
from bita.datasets.names import ImageFolder
from bita.datasets.shards import ShardDataset
from bita.errors import ConfigError, UserError, no_file
from bita.processors.image import ImageProcessor, TrainImageProcessor, draft_size
from bita.processors.rgb import ImageOpener
from bita.processors.text import TextProcessor
from bita.records import Id, has_words, load_json, twin
from bita.registry import processors as registry

LOG = logging.getLogger(__name__)
P = TypeVar("P", ImageProcessor, TextProcessor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What a model asks of its data; processors take it where their own keys say nothing.

    Attributes:
        image_size: side in pixels, with which processors of another size must agree.
        mean: of each channel, of the model's encoder; and std, the deviations.
        prompt: in front of every caption.
        prompt_joint: what joins them.
    """

    image_size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    prompt: str = ""
    prompt_joint: str = "space"

    @classmethod
    def of(cls, model: ArchConfig) -> Self:
        """Return what the model of a configuration asks for."""
        from bita.models.vision import image_input

        size, mean, std = image_input(model)
        return cls(image_size=size, mean=mean, std=std, prompt=model.prompt, prompt_joint=model.prompt_joint)


def build_datasets(cfg: Config) -> dict[str, list[Split]]:
    """Build every split that the run asks for, of every dataset: {split: [one dataset each]}.

    With `run.evaluate` these are the test splits only. A split that is trained on as well as validated on is
    built for training; `EvalLoader` uses the eval processors all the same.

    Raises:
        ConfigError: a dataset does not declare a split, or a file that it names is missing.
        UserError: a file's content is wrong.
    """
    run, needs = cfg.run, Needs.of(cfg.model)
    built: dict[str, list[Split]] = {}
    for split in splits_in_use(run):
        train = split in run.train_splits and not run.evaluate
        built[split] = [
            build_dataset(
                name,
                entry,
                cfg.env,
                split,
                needs,
                train=train,
                images_may_miss=run.on_bad_image == "skip",
            )
            for name, entry in cfg.datasets.items()
        ]
    return built


def build_dataset(
    name: str,
    cfg: DatasetConfig,
    env: EnvConfig,
    split: str,
    needs: Needs | None = None,
    *,
    train: bool,
    images_may_miss: bool = False,
) -> Split:
    """Build one split of one dataset.

    Args:
        name: the dataset's name, for messages.
        cfg: its entry.
        env: where relative paths start.
        split: which split.
        needs: what the model asks of its data; None: nothing.
        train: whether it is trained on.
        images_may_miss: leave it to the reader to find that an image is not there.

    Raises:
        ConfigError: the split is not declared, or a file that the entry names is missing.
        UserError: a file's content is wrong; it and the record are named.
    """
    processors = build_processors(name, cfg, needs or Needs())
    entry = _declared_split(name, cfg, split)
    files = _annotation_files(name, cfg, env, split)
    if is_sharded(entry.storage):
        return _shards(name, cfg, split, files, processors, train=train)
    folder = _image_folder(name, cfg, env)
    records = _with_files(read_annotations(files), folder, files, may_miss=images_may_miss)
    if train:
        records = _with_words(records, name, split)
    references = None
    if entry.ground_truth is not None and not train:
        references = _references(name, split, data_path(env, entry.ground_truth), records)
    dataset = CaptionDataset(
        name,
        split,
        records,
        folder,
        processors,
        references=references,
        train=train,
        captions_per_image=cfg.captions_per_image if train else None,
    )
    if cfg.cache_images:
        dataset.cache = _cache(dataset, data_path(env, ""))
    return dataset


def _shards(
    name: str,
    cfg: DatasetConfig,
    split: str,
    files: Sequence[Path],
    processors: Processors,
    *,
    train: bool,
) -> Split:
    """Build a split that is stored as shards; it takes a dataset's place in a training loader, and nowhere else."""
    if not train or len(files) != 1:
        raise ConfigError(f"datasets.{name}: shards are for training, one index a split, not for {split}")
    return ShardDataset(name, split, files[0], processors, captions_per_image=cfg.captions_per_image)


def _declared_split(name: str, cfg: DatasetConfig, split: str) -> SplitConfig:
    """Return the entry of a split, which must be declared."""
    entry = cfg.build_info.annotations.get(split)
    if entry is None:
        declared = ", ".join(cfg.build_info.annotations) or "none"
        raise ConfigError(
            f"datasets.{name}: no split {split!r}; its build_info.annotations declares {declared}"
        )
    return entry


def _opener(name: str, cfg: DatasetConfig, processor: ImageProcessor) -> ImageOpener:
    """Build what opens images for an image processor: the entry's bands, JPEGs smaller where it allows for it."""
    try:
        return ImageOpener(
            bands=tuple(cfg.bands) if cfg.bands is not None else None,
            draft=draft_size(processor.image_size, processor.scale[0]) if cfg.jpeg_draft else None,
        )
    except ValueError as error:
        raise ConfigError(f"datasets.{name}.bands: {error}") from None


def build_processors(name: str, cfg: DatasetConfig, needs: Needs) -> Processors:
    """Build a dataset's processors, and what opens its images, from its entry."""
    images = {"image_size": needs.image_size, "mean": needs.mean, "std": needs.std}
    texts = {"prompt": needs.prompt, "joint": needs.prompt_joint}
    train_image, eval_image = (
        _build_processor(ImageProcessor, name, cfg.vis_processor, mode, images) for mode in ("train", "eval")
    )
    train_text, eval_text = (
        _build_processor(TextProcessor, name, cfg.text_processor, mode, texts) for mode in ("train", "eval")
    )
    return Processors(
        train_image=train_image,
        eval_image=eval_image,
        train_text=train_text,
        eval_text=eval_text,
        train_open=_opener(name, cfg, train_image),
        eval_open=_opener(name, cfg, eval_image),
    )


def processors_of(cfg: Config) -> Processors:
    """Build the processors of a configuration's first dataset, as its model's encoder wants images; no prompt."""
    name, entry = next(iter(cfg.datasets.items()))
    if any(other.bands != entry.bands for other in cfg.datasets.values()):
        LOG.warning(
            "datasets differ in bands; images outside them are opened as those of %s: %s", name, entry.bands
        )
    return build_processors(name, entry, dataclasses.replace(Needs.of(cfg.model), prompt=""))


def _build_processor(
    kind: type[P], name: str, entries: dict[str, ProcessorConfig], mode: str, wanted: dict[str, Any]
) -> P:
    """Build an entry's processor of a mode with what the model wants and with its own keys; None is left out."""
    key = "vis_processor" if kind is ImageProcessor else "text_processor"
    where, default = f"datasets.{name}.{key}.{mode}", DEFAULT_PROCESSORS[key, mode]
    entry = entries.get(mode) or registry.config(default)(name=default)
    target = registry.get(entry.name)
    if not issubclass(target, kind) or (mode == "eval" and issubclass(target, TrainImageProcessor)):
        what = "for training" if issubclass(target, kind) else f"no {kind.__name__}"
        raise ConfigError(f"{where}.name: {entry.name} is {what}; name another, such as {default}")
    own = {
        key: value for key, value in dataclasses.asdict(entry).items() if key != "name" and value is not None
    }
    size = wanted.get("image_size")
    if size is not None and own.get("image_size", size) != size:
        raise ConfigError(f"{where}.image_size: {own['image_size']} is not model.image_size, {size}")
    try:
        return target(**{key: value for key, value in wanted.items() if value is not None} | own)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _annotation_files(name: str, cfg: DatasetConfig, env: EnvConfig, split: str) -> list[Path]:
    """Return a split's annotation files, which are there; a synthetic dataset is generated first."""
    files = annotation_paths(name, cfg, env, split)
    for path in files:
        if cfg.synthetic:
            _generate(name, path, cfg.synthetic)
        check_annotation(name, split, path)
    return files


def _generate(name: str, path: Path, synthetic: dict[str, Any]) -> None:
    """Generate a synthetic dataset that is not there; ConfigError if it is, from other settings than these."""
    from bita.datasets.synthetic.writer import GENERATED, generate_synthetic

    out = path.parent.parent
    if not path.is_file():
        generate_synthetic(out, synthetic)
    stamp = out / GENERATED
    if stamp.is_file() and load_json(stamp) != synthetic:
        made = stamp.read_text()
        raise ConfigError(
            f"datasets.{name}.synthetic: {out} was made with {made}; remove it to have it made anew"
        )


def _image_folder(name: str, cfg: DatasetConfig, env: EnvConfig) -> Path:
    key = f"datasets.{name}.build_info.images.storage"
    if not cfg.build_info.images.storage:
        raise ConfigError(f"{key}: name the folder of the images")
    folder = data_path(env, cfg.build_info.images.storage)
    if not folder.is_dir():
        raise ConfigError(f"{key}: {folder} is no folder; link or copy the images there")
    return folder


def _with_words(records: Sequence[CaptionRecord], name: str, split: str) -> list[CaptionRecord]:
    """Return the records whose caption says anything: there is nothing to learn from the others."""
    kept = [record for record in records if has_words(record.caption)]
    if len(kept) < len(records):
        LOG.warning("%s %s: %d captions without a word are left out", name, split, len(records) - len(kept))
    return kept


def _with_files(
    records: Sequence[CaptionRecord], folder: Path, files: Sequence[Path], *, may_miss: bool
) -> list[CaptionRecord]:
    """Return the records with the names that their image files have; raises UserError at the first without a file."""
    images = ImageFolder(folder)
    names: dict[str, str] = {}
    for index, record in enumerate(records):
        if record.image in names:
            continue
        found = images.find(record.image)
        if len(found) != 1 and not may_miss:
            problem = f"could be {' or '.join(found)}; rename one" if found else "is missing"
            where = ", ".join(str(path) for path in files)
            raise UserError(f"{where}: record {index}: image {folder / record.image} {problem}")
        names[record.image] = found[0] if len(found) == 1 else record.image
    return [dataclasses.replace(record, image=names[record.image]) for record in records]


def _references(name: str, split: str, path: Path, records: Sequence[CaptionRecord]) -> dict[Id, list[str]]:
    """Return the references of the images in `records`; every image must have some."""
    if not path.is_file():
        key = f"datasets.{name}.build_info.annotations.{split}.ground_truth"
        raise ConfigError(f"{key}: {path}: {no_file(path)}")
    references = read_ground_truth(path)
    ids = list(dict.fromkeys(record.image_id for record in records))
    missing = [image_id for image_id in ids if image_id not in references]
    if missing:
        raise UserError(
            f"{path}: no reference for {len(missing)} images of {name} {split}, the first id "
            f"{missing[0]}{twin(missing[0], references)}"
        )
    return {image_id: references[image_id] for image_id in ids}


def _cache(dataset: CaptionDataset, root: Path) -> PixelCache:
    """Open the pixel cache in the dataset's folder (beside its images), or under `root` if that is read-only."""
    opener, processors = dataset.opener, dataset.processors
    size = (processors.train_image if dataset.train else processors.eval_image).image_size
    size = math.ceil(size * TRAIN_MARGIN) if dataset.train else size
    where = cache_folder(dataset.folder, root, dataset.name)
    return open_cache(dataset.image_names, dataset.folder, opener, size, where)
