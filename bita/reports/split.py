"""What a report is about: a run's folder, and a split that it captioned, as files."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from PIL import Image

from bita.config.checks import annotation_paths, data_path, is_sharded
from bita.config.layers import read_layer
from bita.config.load import recorded_config
from bita.config.schema import Config
from bita.datasets.annotations import CaptionRecord, captions_by_image, read_annotations, read_ground_truth
from bita.datasets.names import ImageFolder
from bita.datasets.synthetic import load_facts, oracle_captions
from bita.datasets.synthetic.facts import Facts
from bita.errors import UserError
from bita.files import user_path
from bita.metrics.compare import read_scores
from bita.metrics.files import read_hypotheses, read_images
from bita.prepare.baselines import class_captions, constant_captions, nearest_captions
from bita.processors.rgb import ImageOpener, grey
from bita.records import Id, ordered, read_object

Captions = dict[Id, str]
Name = TypeVar("Name", bound=Id)

UCM = (
    "agricultural airplane baseballdiamond beach buildings chaparral denseresidential forest freeway golfcourse harbor "
    "intersection mediumresidential mobilehomepark overpass parkinglot river runway sparseresidential storagetanks "
    "tenniscourt"
)
"""Classes of the UC Merced images, of which UCM-Captions numbers a hundred after the other, from 1."""


@dataclass(frozen=True)
class Run:
    """A run's folder and its configuration, with the images and annotations where they are now."""

    folder: Path
    cfg: Config

    @classmethod
    def open(cls, path: str | Path, data: Path | None = None) -> Run:
        """Open a run.

        Args:
            path: its folder, or its output folder (then the latest in it).
            data: in the place of its `env.cache_root`.

        Raises:
            UserError: there is no run.
        """
        start = user_path(path)
        folder = cls._folder(start)
        if folder is None:
            raise UserError(f"run {start}: no config.yaml in it or in latest/; name a run's folder")
        config = folder / "config.yaml"
        cfg = recorded_config(read_layer(config).content, config)
        if data is not None:
            cfg.env.cache_root = str(data)
        return cls(folder.resolve(), cfg)

    @classmethod
    def is_at(cls, path: Path) -> bool:
        """Whether `open` finds a run there."""
        return cls._folder(path) is not None

    @staticmethod
    def _folder(start: Path) -> Path | None:
        return next((f for f in (start / "latest", start) if (f / "config.yaml").is_file()), None)

    @property
    def name(self) -> str:
        """What a reader calls it: its output folder and its own."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    def splits(self) -> dict[str, tuple[str, str]]:
        """Name of the results, as the runner gives it → split and dataset, of those that were captioned; test first."""
        named = {
            split if len(self.cfg.datasets) == 1 else f"{split}_{dataset}": (split, dataset)
            for split in dict.fromkeys([*sorted(self.cfg.run.test_splits, key="test".__ne__), "test", "val"])
            for dataset in self.cfg.datasets
        }
        return {name: where for name, where in named.items() if self._results(name).is_file()}

    def captions(self, name: str) -> Captions:
        """Image id → caption of a split."""
        return read_hypotheses(self._results(name))

    def references_hash(self, name: str) -> str | None:
        """Return what a split's captions were scored against, as the run recorded it; None where it did not."""
        path = self._results(name)
        path = path.with_name(f"{path.stem}_scores.json")
        found: str | None = read_scores(path)["provenance"].get("references") if path.is_file() else None
        return found

    def _results(self, name: str) -> Path:
        return self.folder / "results" / f"{name}.json"


class Split:
    """A split of a dataset that a run captioned, as files.

    Args:
        run: its configuration says where the files are.
        name: of the results, one of `Run.splits`; None: the first.

    Raises:
        UserError: the run captioned no such split, or its annotations are not there.
    """

    def __init__(self, run: Run, name: str | None = None) -> None:
        known = run.splits()
        if name is None and known:
            name = next(iter(known))
        if name not in known:
            have = (
                f"has {', '.join(known)}"
                if known
                else "none; run evaluate.py, or training with run.test_splits=[test]"
            )
            raise UserError(f"{run.folder}: no captions of {name or 'a test split'}: {have}")
        self.name, (self.split, self.dataset) = name, known[name]
        entry, env = run.cfg.datasets[self.dataset], run.cfg.env
        splits = entry.build_info.annotations
        train = splits.get("train")
        self._train: list[Path] = []
        if train is not None and train.storage and not is_sharded(train.storage):
            self._train = annotation_paths(self.dataset, entry, env, "train")
        files = annotation_paths(self.dataset, entry, env, self.split)
        for path in files:
            if not path.exists():
                raise UserError(
                    f"{path}: no such file; the run's data is not at env.cache_root={env.cache_root} any more, seen "
                    "from here: name that folder with --data DIR"
                )
        truth = splits[self.split].ground_truth
        self.ground_truth = None if truth is None else data_path(env, truth)
        self.folder = data_path(env, str(entry.build_info.images.storage))
        self.records, images = read_annotations(files), ImageFolder(self.folder)
        self.references: Mapping[Id, list[str]] = captions_by_image(self.records)
        if self.ground_truth is not None:
            every = read_ground_truth(self.ground_truth)
            self.references = {n: every[n] for n in self.references if n in every}
        self.images = {record.image_id: images.path(record.image) for record in self.records}
        self._unseen: dict[Path, str] = {}
        self.opener = ImageOpener(tuple(entry.bands) if entry.bands is not None else None)
        spice = env.spice_dir
        self.spice_dir = None if spice is None else Path(spice)

    @cached_property
    def facts(self) -> dict[Id, Facts] | None:
        """Of the synthetic dataset: image id → what is on it."""
        path = self.folder.parent / "facts.json"
        return load_facts(path) if path.is_file() else None

    @cached_property
    def training(self) -> list[CaptionRecord]:
        """The training split; nothing where its annotation files are not there, or are shards."""
        return read_annotations(self._train) if all(path.is_file() for path in self._train) else []

    def picture(self, path: Path) -> Image.Image:
        """Return an image as the model sees it; a grey one where it does not open, as in an evaluation, which is noted.

        Raises:
            UserError: the folder of images is not there.
        """
        try:
            return self.opener.open(path)
        except UserError as error:
            if not self.folder.is_dir():
                raise UserError(
                    f"{self.folder}: no such folder of images; link it there, or name another with --data DIR"
                ) from None
            self._unseen[path] = str(error)
            return grey()

    @property
    def notes(self) -> list[str]:
        """What the pictures so far left to be said."""
        first = next(iter(self._unseen.values()), None)
        return [] if first is None else [f"{len(self._unseen)} images are grey here, the first: {first}"]

    def baselines(self) -> dict[str, Captions]:
        """Captions that need no model, by name; none where there is no training split."""
        if not self.training:
            return {}
        found = {
            "the most frequent training caption": constant_captions(self.training, self.records),
            "the nearest training image's caption": nearest_captions(
                self.training, self.records, self.folder, self.picture
            ),
        }
        if self.facts is not None:
            found["the true facts in a typical sentence"] = oracle_captions(self.facts, self.images)
            return found
        names = ({record.image for record in of} for of in (self.training, self.records))
        known, wanted = (self._classes_of_names({name: Path(name).stem for name in of}) for of in names)
        if wanted and set(wanted.values()) <= set(known.values()):
            of_name = known | wanted
            found["the class's most frequent caption"] = class_captions(
                self.training, self.records, of_name.__getitem__
            )
        return found

    def classes(self, file: Path | None = None) -> dict[Id, str]:
        """Image id → class, {} where that is not known.

        Args:
            file: JSON {image id: class}; None: as the ground truth says, else the kind of a synthetic scene, else what
                stands before the number in the file's name, else, for UCM's files, what their number says.

        Raises:
            UserError: the file lacks an image.
        """
        if file is not None:
            known = read_object(file)
            return {image_id: known.label(str(image_id)) for image_id in self.references}
        entries = {} if self.ground_truth is None else read_images(self.ground_truth)
        found = {
            n: str(entries[str(n)].fields["category"])
            for n in self.references
            if str(n) in entries and entries[str(n)].fields.get("category") not in (None, "")
        }
        if len(found) == len(self.references):
            return found
        if self.facts is not None:
            return {image_id: self.facts[image_id].kind or "(no class)" for image_id in self.references}
        return self._classes_of_names({image_id: self.images[image_id].stem for image_id in self.references})

    def _classes_of_names(self, stems: Mapping[Name, str]) -> dict[Name, str]:
        """Image → class, as its file is named; {} where names tell none."""
        numbers = {image: int(stem) for image, stem in stems.items() if stem.isdecimal()}
        if (
            "ucm" in self.dataset
            and len(numbers) == len(stems)
            and all(1 <= n <= 2100 for n in numbers.values())
        ):
            return {image: UCM.split()[(number - 1) // 100] for image, number in numbers.items()}
        before = {image: re.sub(r"[_-]?\d+$", "", stem) for image, stem in stems.items()}
        several = 1 < len(set(before.values())) <= len(before) / 2
        return {image: name or "(no class)" for image, name in before.items()} if several else {}


def shuffled(captions: Captions) -> Captions:
    """Return the same captions, each under another image (a seeded cycle through all of them)."""
    ids = ordered(captions)
    random.Random(0).shuffle(ids)
    return {image: captions[other] for image, other in zip(ids, ids[1:] + ids[:1], strict=True)}
