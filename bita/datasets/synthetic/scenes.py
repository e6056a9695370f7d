"""The kinds of scenes, and one picture with its facts from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image

from bita.datasets.synthetic import scenes_built, scenes_open
from bita.datasets.synthetic.canvas import Canvas
from bita.datasets.synthetic.facts import Facts

SCENES: dict[str, Callable[[Canvas], Facts]] = {
    "airport": scenes_built.airport,
    "harbour": scenes_built.harbour,
    "ships": scenes_open.ships,
    "storage tanks": scenes_built.storage_tanks,
    "tennis courts": scenes_built.tennis_courts,
    "baseball fields": scenes_built.baseball_fields,
    "stadium": scenes_open.stadium,
    "farmland": scenes_open.farmland,
    "circular fields": scenes_open.circular_fields,
    "river": scenes_open.river,
    "bridge": scenes_open.bridge,
    "residential area": scenes_built.residential,
    "parking lot": scenes_built.parking_lot,
    "intersection": scenes_open.intersection,
    "roundabout": scenes_open.roundabout,
    "forest": scenes_open.forest,
    "greenhouses": scenes_built.greenhouses,
    "solar panels": scenes_built.solar_panels,
    "ponds": scenes_open.ponds,
    "beach": scenes_open.beach,
}
"""Every kind with the function that draws it."""


def draw_scene(kind: str, seed: str, size: int) -> tuple[Image.Image, Facts]:
    """Return one picture, RGB (size, size), and what it shows; the same for the same arguments."""
    canvas = Canvas(random.Random(f"{seed} picture"), size)
    facts = SCENES[kind](canvas)
    return canvas.finish(), facts
