"""What only the model itself can say: how sure it is of its captions, and where it looked for some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bita.inference.captioner import Captioner
from bita.records import Id
from bita.reports.cards import data_url
from bita.reports.split import Run, Split

SIDE = 144
"""Of a picture on the page, in pixels."""


@dataclass(frozen=True)
class Looked:
    """Where the model looked for one caption.

    Attributes:
        file: name of the image.
        caption: what it wrote.
        pictures: what each shows → the picture: the image, all attention, what each word came from.
    """

    file: str
    caption: str
    pictures: list[tuple[str, str]]


def captioner_of(run: Run) -> Captioner:
    """Load the model that wrote a run's captions: its own, or for an evaluation the one that it evaluated."""
    own = (run.folder / "checkpoints").is_dir()
    return Captioner.load(run.folder if own or run.cfg.model.init_from is None else run.cfg.model.init_from)


def confidences(captioner: Captioner, split: Split, captions: Mapping[Id, str]) -> dict[Id, float]:
    """Image id → the quality to expect of its caption, which is written again; {} where the run is not calibrated."""
    if captioner.calibration is None:
        return {}
    records = captioner.stream([split.images[image_id] for image_id in captions], num_captions=1)
    sure = {image_id: record.confidence for image_id, record in zip(captions, records, strict=True)}
    return {image_id: value for image_id, value in sure.items() if value is not None}


def looked(captioner: Captioner, split: Split, captions: Mapping[Id, str], ids: Iterable[Id]) -> list[Looked]:
    """Return where the model looked in images, for the captions that it gave them."""
    found = []
    for image_id in ids:
        if not captions[image_id].split():
            continue
        look = captioner.look(split.images[image_id], caption=captions[image_id], occlusion=0)
        pictures = [("image", look.image), ("attention", look.overlay())]
        pictures += [(word.word, look.overlay(k)) for k, word in enumerate(look.words)]
        shown = [(title, data_url(picture, SIDE)) for title, picture in pictures]
        found.append(Looked(split.images[image_id].name, captions[image_id], shown))
    return found
