"""Fitting a run's confidence to its validation split, and judging it on another.

Shapes: N captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bita.checkpoint import folder_of
from bita.config.schema import Config
from bita.datasets.builders import build_dataset
from bita.datasets.captions import CaptionDataset
from bita.errors import UserError
from bita.export import CALIBRATION_FILE, config_of, hash_of
from bita.inference.captioner import Captioner
from bita.inference.captions import Caption
from bita.inference.confidence import Calibration, Values
from bita.metrics.reward import CaptionReward

PERFECT = 10.0
"""CIDEr-D of a caption against itself."""


@dataclass(frozen=True)
class Judged:
    """A split's captions and what they are worth.

    Attributes:
        records: N of them.
        cider: (N,) CIDEr-D of each, from 0 to 10, within the split.
        consensus: CIDEr-D of a reference against the others of its image, the mean.
    """

    records: list[Caption]
    cider: Values
    consensus: float

    @property
    def likelihood(self) -> Values:
        """(N,) log-probability a token."""
        return np.array([record.log_probability / record.tokens for record in self.records])

    @property
    def score(self) -> Values | None:
        """(N,) image-text scores; None where the model has no stage 1."""
        scores = [record.score for record in self.records]
        return None if None in scores else np.array(scores, np.float64)

    def quality(self, consensus: float | None = None) -> Values:
        """(N,) from 0 to 1; see `bita.inference.confidence`."""
        return np.minimum(1.0, self.cider / (consensus or self.consensus))


def judge(captioner: Captioner, cfg: Config, split: str, batch_size: int = 16) -> Judged:
    """Caption a split of the datasets in a run's configuration, and score each caption by itself.

    Raises:
        UserError: the split or its images are not there, or Java is needed and missing.
    """
    images, references = [], []
    for name, entry in cfg.datasets.items():
        dataset = build_dataset(name, entry, cfg.env, split, train=False)
        if not isinstance(dataset, CaptionDataset):
            raise UserError(f"datasets.{name}: {split} is stored as shards, which cannot be validated on")
        for image, (group, *_) in zip(dataset.image_names, dataset.groups, strict=True):
            images.append(dataset.folder / image)
            references.append(dataset.references[dataset.records[group].image_id])
    records = list(captioner.stream(images, batch_size=batch_size, num_captions=1))
    reward = CaptionReward(references)
    cider = [value for (value,) in reward(range(len(records)), [[str(record)] for record in records])]
    return Judged(records, np.array(cider), consensus_of(references))


def consensus_of(references: Sequence[Sequence[str]]) -> float:
    """Mean CIDEr-D of a reference against the others of its image; `PERFECT` where no image has two unlike ones."""
    unlike = [list(dict.fromkeys(texts)) for texts in references]
    found = [
        max(0.0, len(values) * value - PERFECT)
        / (len(values) - 1)  # it is among those that it is compared with
        for values in CaptionReward(unlike)(range(len(unlike)), unlike)
        if len(values) > 1
        for value in values
    ]
    mean = float(np.mean(found)) if found else 0.0
    return mean or PERFECT


def calibrate(
    run: str | Path,
    *,
    split: str | None = None,
    cache_root: str | Path | None = None,
    device: str = "auto",
    stage1: str | Path | None = None,
    batch_size: int = 16,
) -> tuple[Path, Calibration, Judged]:
    """Fit a run's confidence to its validation split and keep it in the run.

    Args:
        run: as for `bita.load`.
        split: None: the first that the run validated on, else `val`.
        cache_root: where the datasets' relative paths start; None: as in the run.
        device: `auto`, `cpu` or `cuda`.
        stage1: as for `bita.load`.
        batch_size: images encoded at a time.

    Returns:
        The file, the calibration, and what it was fitted to.

    Raises:
        UserError: the split is not there or too small, or the run draws its captions.
        OSError: the run's folder cannot be written.
    """
    cfg = config_of(run)
    if cfg.run.use_nucleus_sampling:
        raise UserError(
            f"{run}: draws its captions (run.use_nucleus_sampling); those have no confidence to fit"
        )
    captioner = Captioner.load(run, device, stage1=stage1)
    if cache_root is not None:
        cfg.env.cache_root = str(cache_root)
    split = split or next(iter(cfg.run.valid_splits), "val")
    judged = judge(captioner, cfg, split, batch_size)
    aligner = captioner.stage1
    calibration = Calibration.fit(
        judged.likelihood,
        judged.score,
        judged.quality(),
        model=hash_of(cfg),
        stage1=None if aligner is None else aligner.hash,
        consensus=judged.consensus,
        captions=len(judged.records),
        split=split,
        search=captioner.settings.search(),
    )
    folder = folder_of(Path(str(cfg.model.init_from)))
    path = (folder.parents[1] if folder.parent.name == "checkpoints" else folder) / CALIBRATION_FILE
    calibration.save(path)
    return path, calibration, judged
