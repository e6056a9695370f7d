"""What lies around the main objects, and where those are put."""

from __future__ import annotations

import cmath
import itertools
import math

from bita.datasets.synthetic import sprites
from bita.datasets.synthetic.canvas import MATERIALS, Canvas, Colour, band

FAR = 1.8
"""Beyond the corner of the picture, in scene units, however it is turned and zoomed."""

ROW, ROWS, SCATTERED = "in a row", "in two rows", "scattered"
ROOFS: tuple[Colour, ...] = ((150, 72, 54), (122, 118, 116), (136, 96, 70), (166, 150, 130))


def meander(c: Canvas, start: complex, end: complex, swing: float, steps: int = 14) -> list[complex]:
    """Return a smooth wandering path between two points."""
    across = 1j * (end - start) / abs(end - start)
    phase, waves = c.rng.uniform(0, 2 * math.pi), c.rng.uniform(1.2, 2.2)
    path = []
    for k in range(steps + 1):
        t = k / steps
        bend = math.sin(phase + waves * 2 * math.pi * t) + 0.3 * math.sin(2.3 * phase + 9 * t)
        path.append(start + (end - start) * t + across * swing * bend)
    return path


def blob(c: Canvas, centre: complex, radius: float, *, rough: float = 0.16) -> list[complex]:
    """Return a round shape with a wavy edge."""
    a, b = c.rng.uniform(0, 6.3), c.rng.uniform(0, 6.3)
    shape = []
    for k in range(28):
        angle = 2 * math.pi * k / 28
        wave = 1 + rough * (0.6 * math.sin(2 * angle + a) + 0.4 * math.sin(3 * angle + b))
        shape.append(centre + cmath.rect(radius * wave, angle))
    return shape


def lay(c: Canvas, surroundings: str) -> None:
    """Ground for a scene whose middle (about |y| < 0.65) is left to the main objects."""
    base = {"bare ground": "bare ground", "lawn": "lawn"}.get(surroundings)
    paved = 3 if surroundings in ("road", "water", "buildings") else 0
    base = base or c.rng.choices(("lawn", "bare ground", "concrete"), (5, 4, paved))[0]
    if surroundings == "trees" and c.rng.random() < 0.5:
        c.cover("trees")
        c.fill(blob(c, 0, c.rng.uniform(0.88, 1.02)), base)
    else:
        c.cover(base)
        patches(c)
    side = c.rng.choice((1, -1))
    if surroundings == "road":
        y = 1j * side * c.rng.uniform(0.8, 0.9)
        sprites.road(c, [y - FAR, y + FAR], 0.19)
        sprites.traffic(c, y - FAR, y + FAR, 0.19, 9)
    elif surroundings == "water":
        near, far = 1j * side * c.rng.uniform(0.86, 0.94), 1j * side * FAR
        shore = meander(c, near - FAR, near + FAR, 0.04)
        if side < 0:
            shore.reverse()
        water = [*shore, FAR + far, -FAR + far] if side > 0 else [*shore, -FAR + far, FAR + far]
        c.keep_clear(water)
        c.fill(band(shore, 0.09), "sand")
        c.fill(water, c.rng.choice(("blue water", "green water")))


def patches(c: Canvas) -> None:
    """Other grass and soil: a parcel along one side, worn places, a path."""
    if c.rng.random() < 0.45:
        side = cmath.rect(1, c.rng.uniform(0, 2 * math.pi))
        edge = side * c.rng.uniform(0.6, 0.9)
        parcel = [
            edge - FAR * side * 1j,
            edge + FAR * side * 1j,
            side * (FAR + 1j * FAR),
            side * (FAR - 1j * FAR),
        ]
        c.fill(parcel, c.furrows(*_soil(c), c.rng.uniform(0, math.pi), c.rng.uniform(0.05, 0.1)))
    if c.rng.random() < 0.6:
        c.blend(c.textured("cloudy", *_soil(c)), c.rng.uniform(0.08, 0.3))
    if c.rng.random() < 0.3:
        start, end = (cmath.rect(FAR, c.rng.uniform(0, 2 * math.pi)) for _ in range(2))
        if abs(end - start) > 1:
            c.line(meander(c, start, end, 0.1), _soil(c)[1], c.rng.uniform(0.03, 0.06))


def _soil(c: Canvas) -> tuple[Colour, Colour]:
    """Return the palette of some grass or soil."""
    return c.rng.choice(MATERIALS[c.rng.choice(("lawn", "bare ground"))][1])


def dress(c: Canvas, surroundings: str) -> None:
    """Trees, houses and clutter wherever it is still free, drawn last."""
    if surroundings == "trees":
        grove(c, 130)
    elif surroundings == "houses":
        village(c, 16)
        grove(c, 10)
    else:
        grove(c, c.rng.choice((0, 3, 6, 10)))


def grove(c: Canvas, tries: int) -> None:
    """Single trees at free places."""
    places = []
    for _ in range(tries):
        place, radius = c.somewhere(), c.rng.uniform(0.05, 0.1)
        if c.free(place, radius * 1.1):
            places.append((place, radius))
    for place, radius in places:
        sprites.tree(c, place, radius)


def village(c: Canvas, tries: int) -> None:
    """Small houses at free places, all along one direction."""
    turn = c.rng.choice((1, 1j))
    for _ in range(tries):
        place, size = c.somewhere(), c.rng.uniform(0.17, 0.22)
        if c.free(place, size * 0.62):
            sprites.house(c, place, turn, size, c.rng.choice(ROOFS))


def pick_count(c: Canvas, most: int = 6) -> int:
    """Return a number of main objects: one to four, or two rows of three."""
    return c.rng.choice([k for k in (1, 2, 3, 4, 6) if k <= most])


def pick_arrangement(c: Canvas, count: int, *, loose: bool = True) -> str | None:
    """Return how that many objects stand; None for a single one."""
    if count == 1:
        return None
    choices = [ROW] if count < 6 else [ROWS]
    if count == 4:
        choices.append(ROWS)
    if loose and 2 < count < 6:
        choices.append(SCATTERED)
    return c.rng.choice(choices)


def positions(c: Canvas, count: int, arrangement: str | None, pitch: float) -> list[complex]:
    """Centres for objects that need `pitch` scene units each."""
    shift = complex(c.rng.uniform(-0.08, 0.08), c.rng.uniform(-0.06, 0.06))
    if arrangement is None:
        return [shift * 3]
    if arrangement == SCATTERED:
        return _scatter(c, count, pitch)
    per_row = count if arrangement == ROW else count // 2
    heights = (0.0,) if arrangement == ROW else (-pitch / 2, pitch / 2)
    return [shift + complex((k - (per_row - 1) / 2) * pitch, y) for y in heights for k in range(per_row)]


def _scatter(c: Canvas, count: int, pitch: float) -> list[complex]:
    gap, places = pitch * 1.12, list[complex]()
    for attempt in range(4000):
        place = cmath.rect(0.66 * math.sqrt(c.rng.random()), c.rng.uniform(0, 2 * math.pi))
        if all(abs(place - other) > gap for other in places):
            places.append(place)
            if len(places) == count:
                break
        if attempt % 60 == 59:
            places.clear()
            gap *= 0.97
    return places


def spacing(places: list[complex], most: float) -> float:
    """Return the least distance between two of the places, at most `most`."""
    return min([most, *(abs(a - b) for a, b in itertools.combinations(places, 2))])
