"""Images to look at: best, worst, doubtful, at random, each with what was written and the references."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from bita.records import Id, ordered
from bita.reports.judge import Judged
from bita.reports.split import Split

EACH, RANDOM = 12, 36
"""Images of a kind, and at random."""
SIDE = 256
"""The longest side of an image on the page, in pixels."""


def rank_by(judged: Judged) -> str:
    """Return the metric that tells good captions from bad ones: CIDEr where it is there, else the first."""
    return "CIDEr" if "CIDEr" in judged.scores.overall else next(iter(judged.scores.overall))


def some(ids: Iterable[Id]) -> list[Id]:
    """Return ids in an order that is no order, the same every time."""
    mixed = ordered(ids)
    random.Random(1).shuffle(mixed)
    return mixed


def chosen(runs: Sequence[Judged], confidence: Mapping[Id, float]) -> dict[str, list[Id]]:
    """Return kind → images of it, ordered.

    Args:
        runs: one, or two that are compared.
        confidence: image id → how much the first run trusts its caption; may be empty.
    """
    metric = rank_by(runs[0])
    values = [{n: of[metric] for n, of in run.scores.per_image.items()} for run in runs]
    ids = ordered(runs[0].captions)
    rising = sorted(ids, key=lambda n: values[0][n])
    of = " of the first" if len(runs) > 1 else ""
    kinds = {"at random": some(ids)[:RANDOM], f"best{of}": rising[::-1][:EACH], f"worst{of}": rising[:EACH]}
    if confidence:
        kinds[f"most doubtful{of}"] = sorted(ids, key=lambda n: confidence[n])[:EACH]
    if len(runs) > 1:
        gaps = sorted(ids, key=lambda n: values[0][n] - values[1][n])
        kinds["first better"], kinds["second better"] = gaps[::-1][:EACH], gaps[:EACH]
    return kinds


def rows(
    runs: Sequence[Judged], split: Split, classes: Mapping[Id, str], confidence: Mapping[Id, float]
) -> list[dict[str, Any]]:
    """Return what the page says of each image, in the order of ids, without pictures."""
    metric = rank_by(runs[0])
    return [
        {
            "id": image_id,
            "file": split.images[image_id].name,
            "class": classes.get(image_id, ""),
            "confidence": confidence.get(image_id),
            "references": split.references[image_id],
            "said": [
                {
                    "caption": run.captions[image_id],
                    "value": run.scores.per_image[image_id][metric],
                    "invented": run.invented.examples.get(image_id, []),
                    "copied": run.copied.get(image_id, False),
                }
                for run in runs
            ],
        }
        for image_id in ordered(runs[0].captions)
    ]


def cards(
    every: Sequence[dict[str, Any]], kinds: Mapping[str, Sequence[Id]], split: Split
) -> list[dict[str, Any]]:
    """Return the rows of the chosen images, each once, with its picture and the kinds that it is of."""
    of = {row["id"]: row for row in every}
    images = dict.fromkeys(image_id for ids in kinds.values() for image_id in ids)
    return [
        of[n]
        | {
            "kinds": [kind for kind, ids in kinds.items() if n in ids],
            "picture": data_url(split.picture(split.images[n])),
        }
        for n in images
    ]


def data_url(image: Image.Image, side: int = SIDE) -> str:
    """Return an image, made smaller, as an address that holds it, so that the page is one file."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
