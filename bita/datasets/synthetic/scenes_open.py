"""Scenes of land, water and roads."""

from __future__ import annotations

import cmath
import math

from bita.datasets.synthetic import ground, sprites
from bita.datasets.synthetic.canvas import Canvas, Colour, band, disc, rectangle, shade
from bita.datasets.synthetic.facts import Facts
from bita.datasets.synthetic.ground import FAR, ROW, SCATTERED

CROPS: dict[str, tuple[tuple[Colour, Colour], ...]] = {
    "green": (((58, 100, 44), (102, 144, 70)), ((70, 118, 56), (112, 154, 82))),
    "yellow": (((176, 156, 74), (216, 198, 116)), ((186, 160, 82), (222, 204, 132))),
    "brown": (((104, 78, 56), (142, 112, 84)), ((96, 72, 56), (132, 102, 80))),
}


def ships(c: Canvas) -> Facts:
    """Ships on the sea."""
    around = c.rng.choice(("open sea", "coast"))
    count = c.rng.choice((1, 1, 2, 2, 3, 4))
    arrangement = None if count == 1 else ROW if count == 2 else c.rng.choice((ROW, SCATTERED))
    colour = c.rng.choice(("red", "blue", "gray", "white"))
    c.cover(c.rng.choice(("blue water", "green water")))
    if around == "coast":
        edge = -0.84j
        shore = ground.meander(c, edge - FAR, edge + FAR, 0.06)
        land = [*shore, complex(FAR, -FAR), complex(-FAR, -FAR)]
        c.fill(band(shore, 0.12), "sand")
        c.fill(land, "lawn")
    pitch = 0.42 if arrangement == ROW else 0.55
    heading = cmath.rect(1, c.rng.choice((1, -1)) * math.pi / 2)
    loose = arrangement != ROW
    places = ground.positions(c, count, arrangement, pitch)
    length = 0.66
    wake = c.rng.random() < 0.6
    paint = sprites.paint(c, colour)
    for place in places:
        turn = cmath.rect(1, c.rng.uniform(0, 2 * math.pi)) if loose else heading
        sprites.ship(c, place + 0.08j, turn, length * c.rng.uniform(0.92, 1.0), paint, wake=wake)
    if around == "coast":
        c.keep_clear([-FAR - 0.92j, FAR - 0.92j, complex(FAR, FAR), complex(-FAR, FAR)])
        ground.dress(c, c.rng.choice(("trees", "lawn")))
    return Facts("ships", count, colour, arrangement, around)


def stadium(c: Canvas) -> Facts:
    """Return a football field, a running track and the stands around them."""
    around = c.rng.choice(("lawn", "trees", "houses", "road"))
    colour = c.rng.choice(("red", "blue", "gray"))
    ground.lay(c, around)

    def oval(half: float, radius: float) -> list[complex]:
        ends = ((half, -90), (-half, 90))
        return [x + cmath.rect(radius, math.radians(a + 15 * k)) for x, a in ends for k in range(13)]

    stands = oval(0.34, 0.55)
    c.keep_clear(oval(0.34, 0.6))
    if c.rng.random() < 0.75:
        c.shadow(stands, 0.12)
        grey = c.rng.choice(((214, 212, 206), (168, 170, 174), (190, 180, 166)))
        for step, light in ((0.55, 1.0), (0.515, 0.86), (0.48, 1.05), (0.445, 0.84)):
            c.fill(oval(0.34, step), shade(grey, light))
        for k in range(26):
            ray = cmath.rect(1, 2 * math.pi * (k + 0.5) / 26)
            anchor = 0.34 * (1 if ray.real > 0 else -1)
            c.line([anchor + ray * 0.42, anchor + ray * 0.55], shade(grey, 0.75), 0.01)
    track = sprites.paint(c, colour)
    c.fill(oval(0.34, 0.42), track)
    for radius in (0.39, 0.36, 0.33):
        edge = oval(0.34, radius)
        c.line([*edge, edge[0]], (228, 222, 216), 0.008)
    c.fill(oval(0.34, 0.29), "lawn")
    c.fill(rectangle(0, 0.78, 0.46), c.furrows((70, 122, 58), (98, 150, 78), 0.0, 0.16))
    box = rectangle(0, 0.76, 0.44)
    c.line([*box, box[0]], (238, 238, 234), 0.012)
    c.line([-0.22j, 0.22j], (238, 238, 234), 0.012)
    ring = disc(0, 0.07)
    c.line([*ring, ring[0]], (238, 238, 234), 0.012)
    for side in (1, -1):
        goal = rectangle(0.33 * side, 0.1, 0.22)
        c.line([*goal, goal[0]], (238, 238, 234), 0.012)
    ground.dress(c, around)
    return Facts("stadium", None, colour, None, around)


def farmland(c: Canvas) -> Facts:
    """Ploughed and growing fields in strips or squares, one colour of crop more than the others."""
    around = c.rng.choice(("trees", "road", "houses"))
    colour = c.rng.choice(tuple(CROPS))
    arrangement = c.rng.choice(("in strips", "in squares"))
    c.cover("lawn")
    widths = (0.42, 4.0) if arrangement == "in strips" else (0.62, 0.62)
    cells = []
    for i in range(-5, 5):
        for j in range(-1 if widths[1] > 1 else -3, 1 if widths[1] > 1 else 3):
            cells.append(complex((i + 0.5) * widths[0], (j + 0.5) * widths[1]))
    slant = c.rng.uniform(-0.25, 0.25) if arrangement == "in strips" else 0.0
    others = [other for other in CROPS if other != colour]
    paints = []
    for name in (colour, colour, c.rng.choice(others)):
        dark, light = c.rng.choice(CROPS[name])
        gain = c.rng.uniform(0.88, 1.08)
        along = c.rng.choice((0.0, math.pi / 2)) if arrangement == "in squares" else 0.0
        paints.append(c.furrows(shade(dark, gain), shade(light, gain), along, c.rng.uniform(0.06, 0.1)))
    for k, cell in enumerate(cells):
        shape = [p + slant * p.imag for p in rectangle(cell, widths[0] - 0.035, widths[1] - 0.035)]
        c.fill(shape, paints[(k + (cell.imag > 0)) % 3])
    if around == "road":
        path = [complex(-FAR, 0.3), complex(FAR, 0.3 + c.rng.uniform(-0.1, 0.1))]
        sprites.road(c, path, 0.14, lanes=False)
        sprites.traffic(c, path[0], path[1], 0.14, 4)
    elif around == "trees":
        for k in range(24):
            sprites.tree(
                c, complex(-1.5 + 0.125 * k, 0.31 + c.rng.uniform(-0.03, 0.03)), c.rng.uniform(0.05, 0.09)
            )
    else:
        yard = rectangle(complex(c.rng.uniform(-0.3, 0.3), 0.31), 1.0, 0.62)
        c.fill(yard, "lawn")
        middle = sum(yard) / 4
        for k in range(6):
            place = middle + complex((k % 3 - 1) * 0.32, (k // 3 - 0.5) * 0.3)
            sprites.house(c, place, c.rng.choice((1, 1j)), 0.2, c.rng.choice(ground.ROOFS))
    return Facts("farmland", None, colour, arrangement, around)


def circular_fields(c: Canvas) -> Facts:
    """Round fields watered by a turning arm."""
    around = c.rng.choice(("bare ground", "lawn", "road"))
    count = c.rng.choice((1, 2, 3, 4, 4))
    arrangement = None if count == 1 else ROW if count < 4 else "in two rows"
    colour = c.rng.choice(("green", "green", "yellow", "brown"))
    ground.lay(c, around)
    pitch = 0.6
    for place in ground.positions(c, count, arrangement, pitch):
        dark, light = c.rng.choice(CROPS[colour])
        angle = c.rng.uniform(0, 2 * math.pi)
        radius = pitch * 0.46
        c.keep_clear(disc(place, radius))
        c.fill(disc(place, radius * 1.03, 40), shade(dark, 0.85))
        c.fill(disc(place, radius, 40), c.furrows(dark, light, angle, 0.08))
        for k in range(1, 4):
            ring = disc(place, radius * k / 4, 24)
            c.line([*ring, ring[0]], shade(dark, 0.92), 0.01)
        c.line([place, place + cmath.rect(radius, angle)], (226, 226, 220), 0.016)
    ground.dress(c, around)
    return Facts("circular fields", count, colour, arrangement, around)


def _stream(c: Canvas, around: str, colour: str, swing: float, width: float) -> list[complex]:
    """Banks and water of a river along y."""
    c.cover("trees" if around == "forest" else "bare ground" if around == "bare ground" else "lawn")
    path = ground.meander(c, -1j * FAR, 1j * FAR, swing, 26)
    c.keep_clear(band(path, width * 1.3))
    c.fill(band(path, width * 1.3), "sand" if around == "bare ground" else shade(c.leaf, 1.1))
    c.fill(band(path, width), f"{colour} water")
    c.line([p - width * 0.33 for p in path], (120, 140, 146), 0.008)
    return path


def river(c: Canvas) -> Facts:
    """Return a river, winding or straight."""
    around = c.rng.choice(("forest", "bare ground", "lawn", "houses"))
    colour = c.rng.choice(("blue", "green", "brown"))
    arrangement = c.rng.choice(("winding", "winding", "straight"))
    swing = c.rng.uniform(0.22, 0.34) if arrangement == "winding" else 0.02
    _stream(c, around, colour, swing, c.rng.uniform(0.26, 0.42))
    ground.dress(c, "lawn" if around == "forest" else around)
    return Facts("river", None, colour, arrangement, around)


def bridge(c: Canvas) -> Facts:
    """Bridges that cross a river."""
    around = c.rng.choice(("forest", "bare ground", "lawn", "houses"))
    colour = c.rng.choice(("blue", "green", "brown"))
    count = c.rng.choice((1, 1, 2, 3))
    width = c.rng.uniform(0.5, 0.72)
    path = _stream(c, around, colour, 0.05, width)
    middle = sum(p.real for p in path) / len(path)
    for k in range(count):
        y = (k - (count - 1) / 2) * 0.56
        deck, span = 0.18, width * 0.75
        sprites.road(c, [complex(-FAR, y), complex(FAR, y)], deck)
        slab = rectangle(complex(middle, y), 2 * span, deck * 1.25)
        c.shadow(slab, 0.1)
        c.fill(slab, (196, 194, 188))
        c.fill(rectangle(complex(middle, y), 2 * span, deck), "asphalt")
        for side in (1, -1):
            rail = complex(middle, y + side * deck * 0.6)
            c.line([rail - span, rail + span], (232, 230, 224), 0.02)
        c.line([complex(-FAR, y), complex(FAR, y)], (222, 216, 190), 0.01)
        sprites.traffic(c, complex(-1.2, y), complex(1.2, y), deck, 5)
    ground.dress(c, "lawn" if around == "forest" else around)
    return Facts("bridge", count, colour, None, around)


def intersection(c: Canvas) -> Facts:
    """Three or four arms of roads that meet."""
    around = c.rng.choice(("lawn", "trees", "houses", "bare ground"))
    count = c.rng.choice((3, 4))
    ground.lay(c, around)
    width = c.rng.uniform(0.26, 0.36)
    centre = complex(c.rng.uniform(-0.15, 0.15), c.rng.uniform(-0.15, 0.15))
    arms = [1, -1, 1j, -1j][:count]
    for arm in arms:
        sprites.road(c, [centre, centre + arm * FAR], width)
    c.fill(rectangle(centre, width, width), "asphalt")
    for arm in arms:
        for k in range(6):
            stripe = centre + arm * complex(width * 0.68, (k - 2.5) * width / 7)
            c.fill(rectangle(stripe, width * 0.22, width * 0.07, arm), (232, 230, 224))
        sprites.traffic(c, centre + arm * (width + 0.05), centre + arm * FAR, width, c.rng.randrange(3, 6))
    ground.dress(c, around)
    return Facts("intersection", count, None, None, around)


def roundabout(c: Canvas) -> Facts:
    """Roads that meet at a ring."""
    around = c.rng.choice(("lawn", "trees", "houses", "bare ground"))
    count = c.rng.choice((3, 4))
    ground.lay(c, around)
    radius, width = c.rng.uniform(0.4, 0.5), c.rng.uniform(0.17, 0.2)
    arms = [cmath.rect(1, 2 * math.pi * k / count + c.rng.uniform(-0.06, 0.06)) for k in range(count)]
    for arm in arms:
        sprites.road(c, [arm * radius, arm * FAR], width)
    c.keep_clear(disc(0, radius + 0.03))
    c.fill(disc(0, radius + 0.015, 40), (150, 146, 138))
    c.fill(disc(0, radius, 40), "asphalt")
    ring = disc(0, radius - width / 2, 24)
    for a, b in zip(ring[::2], ring[1::2], strict=True):
        c.line([a, b], (226, 222, 206), 0.012)
    for arm in arms:
        sprites.traffic(c, arm * (radius + 0.1), arm * FAR, width, c.rng.randrange(1, 4))
    for k in range(3):
        spot = cmath.rect(radius - width * 0.55, c.rng.uniform(0, 2) + 2.1 * k)
        sprites.car(c, spot, 1j * spot / abs(spot), 0.085)
    c.fill(disc(0, radius - width, 32), (168, 162, 150))
    c.fill(disc(0, radius - width - 0.02, 32), "lawn")
    if c.rng.random() < 0.5:
        for k in range(6):
            sprites.tree(c, cmath.rect((radius - width) * 0.55, k * math.pi / 3), 0.06)
    ground.dress(c, around)
    return Facts("roundabout", count, None, None, around)


def forest(c: Canvas) -> Facts:
    """Return a forest with clearings."""
    count = c.rng.choice((1, 2, 3))
    colour = c.rng.choice(("green", "yellow", "brown"))
    arrangement = None if count == 1 else ROW if count == 2 else c.rng.choice((ROW, SCATTERED))
    c.cover("trees")
    pitch = 0.58
    for place in ground.positions(c, count, arrangement, pitch):
        clearing = ground.blob(c, place, pitch * c.rng.uniform(0.34, 0.4))
        dark, light = c.rng.choice(CROPS[colour])
        c.fill(clearing, shade(dark, 0.5))
        c.fill([p + c.shadow_step * 0.05 for p in clearing], c.textured("cloudy", dark, light))
    return Facts("forest", count, colour, arrangement, None)


def ponds(c: Canvas) -> Facts:
    """Ponds with green banks."""
    around = c.rng.choice(("lawn", "bare ground", "trees", "houses"))
    count = ground.pick_count(c, 4)
    arrangement = None if count == 1 else ROW if count == 2 else c.rng.choice((ROW, SCATTERED))
    colour = c.rng.choice(("blue", "green", "brown"))
    ground.lay(c, around)
    pitch = 0.46
    places = ground.positions(c, count, arrangement, pitch)
    for place in places:
        shape = ground.blob(c, place, ground.spacing(places, pitch) * c.rng.uniform(0.33, 0.38), rough=0.26)
        c.keep_clear(shape)
        c.fill(band([*shape, shape[0]], 0.06), shade(c.leaf, 1.25))
        c.fill(shape, f"{colour} water")
    ground.dress(c, around)
    return Facts("ponds", count, colour, arrangement, around)


def beach(c: Canvas) -> Facts:
    """Sea, surf, sand and what is behind it."""
    around = c.rng.choice(("trees", "houses", "lawn", "road"))
    colour = c.rng.choice(("blue", "green"))
    c.cover("trees" if around == "trees" else "lawn")
    line = c.rng.uniform(-0.35, 0.5)
    shore = ground.meander(c, complex(line, -FAR), complex(line, FAR), c.rng.uniform(0.04, 0.12), 24)
    width = c.rng.uniform(0.35, 0.5)
    sand = [*(p - width for p in shore), complex(FAR, FAR), complex(FAR, -FAR)]
    c.keep_clear(sand)
    c.fill(sand, "sand")
    water = c.material(f"{colour} water")
    wet = [*(p - 0.05 for p in shore), complex(FAR, FAR), complex(FAR, -FAR)]
    c.fill(wet, (172, 158, 128))
    c.fill(
        [*shore, complex(FAR, FAR), complex(FAR, -FAR)],
        (118, 160, 160) if colour == "blue" else (110, 146, 122),
    )
    c.fill([*(p + 0.14 for p in shore), complex(FAR, FAR), complex(FAR, -FAR)], water)
    for offset in (0.01, 0.1, 0.19)[: c.rng.randrange(1, 4)]:
        surf = [p + offset + c.rng.uniform(-0.015, 0.015) for p in shore]
        c.line(surf, (236, 240, 238), 0.032 - offset * 0.09)
    for _ in range(c.rng.randrange(0, 10)):
        spot = c.rng.choice(shore) - width * c.rng.uniform(0.35, 0.8)
        c.disc_shadow(spot, 0.03, 0.04)
        c.circle(spot, 0.03, c.rng.choice(((196, 60, 50), (240, 240, 236), (60, 100, 170), (226, 190, 70))))
    if around == "road":
        x = line - width - 0.2
        sprites.road(c, [complex(x, -FAR), complex(x, FAR)], 0.15)
        sprites.traffic(c, complex(x, -FAR), complex(x, FAR), 0.15, 8)
    ground.dress(c, "lawn" if around == "trees" else around)
    return Facts("beach", None, colour, None, around)
