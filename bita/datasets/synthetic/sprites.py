"""Things seen from straight above: trees, cars, houses, airplanes, boats, tanks, courts …

Each function draws one thing at a place (complex, scene units) and a heading (complex, modulus one).
"""

from __future__ import annotations

import cmath
import itertools
import math

from bita.datasets.synthetic.canvas import Canvas, Colour, Shape, band, disc, rectangle, shade

PAINT: dict[str, tuple[Colour, ...]] = {
    "white": ((238, 238, 234), (228, 230, 232)),
    "gray": ((128, 132, 138), (112, 116, 122)),
    "red": ((176, 52, 44), (158, 46, 40)),
    "blue": ((44, 88, 170), (38, 74, 150)),
    "green": ((56, 122, 78), (64, 132, 92)),
    "brown": ((128, 88, 58), (116, 78, 50)),
    "yellow": ((214, 190, 88), (204, 178, 76)),
}
"""What the colour words mean."""

CARS: tuple[Colour, ...] = (
    (236, 236, 236),
    (206, 208, 210),
    (40, 42, 46),
    (150, 30, 30),
    (40, 62, 110),
    (110, 112, 116),
)


def paint(c: Canvas, colour: str) -> Colour:
    """Return a shade of a colour word."""
    return shade(c.rng.choice(PAINT[colour]), c.rng.uniform(0.93, 1.07))


def placed(shape: Shape, place: complex, turn: complex) -> list[complex]:
    """Return a shape drawn at the origin, moved and turned."""
    return [place + turn * p for p in shape]


def mirrored(half: Shape) -> list[complex]:
    """Return the whole outline from its half above the x axis, listed nose to tail."""
    return [*half, *(p.conjugate() for p in reversed(half))]


def tree(c: Canvas, place: complex, radius: float) -> None:
    """A tree crown with its shadow."""
    step = c.shadow_step
    c.disc_shadow(place, radius * 0.9, radius * 1.5)
    green = shade(c.leaf, c.rng.uniform(0.8, 1.2))
    c.circle(place, radius, green)
    c.circle(place - step * radius * 0.22, radius * 0.72, shade(green, 1.3))
    c.circle(place - step * radius * 0.4, radius * 0.36, shade(green, 1.6))


def car(c: Canvas, place: complex, turn: complex, length: float) -> None:
    """A car with dark windows."""
    width = length * 0.46
    body = rectangle(place, length, width, turn)
    colour = c.rng.choice(CARS)
    c.shadow(body, length * 0.3)
    c.fill(body, colour)
    c.fill(rectangle(place - turn * length * 0.06, length * 0.42, width * 0.86, turn), shade(colour, 0.45))
    c.fill(rectangle(place - turn * length * 0.06, length * 0.24, width * 0.8, turn), shade(colour, 0.95))


def house(c: Canvas, place: complex, turn: complex, length: float, colour: Colour) -> None:
    """A house with a gable roof: the side away from the sun is darker."""
    depth = length * 0.68
    base = rectangle(place, length, depth, turn)
    c.shadow(base, length * 0.32)
    c.keep_clear(rectangle(place, length * 1.15, depth * 1.2, turn))
    away = (c.shadow_step / turn).imag > 0
    ridge = turn * length / 2
    for side in (1, -1):
        eave = turn * 1j * side * depth / 2
        lit = 0.72 if (side > 0) == away else 1.12
        c.fill([place - ridge, place + ridge, place + ridge + eave, place - ridge + eave], shade(colour, lit))
    c.line([place - ridge, place + ridge], shade(colour, 1.25), 0.012)
    if c.rng.random() < 0.5:
        spot = place + turn * complex(length * 0.22, depth * 0.2)
        c.fill(rectangle(spot, length * 0.12, length * 0.12, turn), shade(colour, 0.5))


def building(c: Canvas, place: complex, turn: complex, size: tuple[float, float], colour: Colour) -> None:
    """A flat roof with a parapet and a few units on it."""
    width, depth = size
    base = rectangle(place, width, depth, turn)
    c.shadow(base, min(width, depth) * 0.6)
    c.keep_clear(rectangle(place, width * 1.1, depth * 1.1, turn))
    c.fill(base, shade(colour, 0.8))
    c.fill(rectangle(place, width - 0.03, depth - 0.03, turn), colour)
    for _ in range(3):
        spot = complex(c.rng.uniform(-0.35, 0.35) * width, c.rng.uniform(-0.3, 0.3) * depth)
        unit = rectangle(place + turn * spot, 0.05, 0.035, turn)
        c.shadow(unit, 0.025)
        c.fill(unit, shade(colour, 1.18))


_FUSELAGE = mirrored([0.5, 0.46 + 0.035j, 0.36 + 0.052j, -0.2 + 0.05j, -0.42 + 0.022j, -0.5 + 0.008j])
_WINGS = mirrored([0.14 + 0.0j, 0.13 + 0.05j, -0.12 + 0.47j, -0.2 + 0.48j, -0.07 + 0.05j, -0.06 + 0.0j])
_TAIL = mirrored([-0.34 + 0.0j, -0.35 + 0.02j, -0.45 + 0.18j, -0.5 + 0.18j, -0.47 + 0.02j, -0.48 + 0.0j])


def airplane(c: Canvas, place: complex, turn: complex, length: float, colour: Colour) -> None:
    """An airliner: fuselage, swept wings, engines, tail."""
    size = turn * length
    parts = [placed(part, place, size) for part in (_WINGS, _TAIL, _FUSELAGE)]
    for part in parts:
        c.shadow(part, length * 0.09, convex=False)
    for part, light in zip(parts, (0.86, 0.86, 1.0), strict=True):
        c.fill(part, shade(colour, light))
    for side in (1, -1):
        engine = place + size * complex(0.03, 0.19 * side)
        c.fill(rectangle(engine, length * 0.11, length * 0.045, turn), shade(colour, 0.55))
    c.line([place + size * 0.4, place - size * 0.4], shade(colour, 1.1), length * 0.03)
    c.line([place - size * 0.34, place - size * 0.5], shade(colour, 0.5), length * 0.03)
    c.fill(placed([0.47, 0.43 + 0.03j, 0.43 - 0.03j], place, size), (40, 46, 56))


def boat(c: Canvas, place: complex, turn: complex, length: float, colour: Colour) -> None:
    """A motor boat: pointed hull, deck, cabin."""
    half = [0.5, 0.3 + 0.11j, 0.02 + 0.16j, -0.5 + 0.14j]
    size = turn * length
    hull_shape = placed(mirrored([complex(p) for p in half]), place, size)
    c.shadow(hull_shape, length * 0.12)
    c.fill(hull_shape, colour)
    c.fill(placed(mirrored([0.36, 0.2 + 0.08j, -0.42 + 0.1j]), place, size), shade(colour, 0.82))
    c.fill(rectangle(place - size * 0.06, length * 0.34, length * 0.17, turn), (240, 240, 238))
    c.fill(rectangle(place + size * 0.07, length * 0.07, length * 0.15, turn), (48, 56, 70))


def ship(c: Canvas, place: complex, turn: complex, length: float, colour: Colour, *, wake: bool) -> None:
    """A cargo ship: long hull, hatches, the bridge aft, perhaps a wake."""
    size = turn * length
    if wake:
        foam = (150, 176, 182)
        for side in (1, -1):
            c.line(
                [place - size * 0.45 + size * 0.05j * side, place - size * 0.95 + size * 0.15j * side],
                foam,
                0.014,
            )
        c.fill(placed([-0.45 + 0.05j, -0.45 - 0.05j, -0.9 - 0.03j, -0.9 + 0.03j], place, size), foam)
    body = placed(mirrored([0.5, 0.42 + 0.07j, 0.3 + 0.11j, -0.44 + 0.11j, -0.5 + 0.08j]), place, size)
    c.shadow(body, length * 0.08)
    c.fill(body, shade(colour, 0.75))
    c.fill(placed(mirrored([0.46, 0.3 + 0.085j, -0.46 + 0.085j]), place, size), colour)
    for k in range(5):
        hatch = rectangle(place + size * (0.28 - 0.125 * k), length * 0.09, length * 0.13, turn)
        c.fill(hatch, shade(colour, 1.3 if k % 2 else 0.6))
    bridge = rectangle(place - size * 0.38, length * 0.1, length * 0.19, turn)
    c.shadow(bridge, length * 0.1)
    c.fill(bridge, (236, 236, 232))


def tank(c: Canvas, place: complex, radius: float, colour: Colour) -> None:
    """A storage tank: its roof, the rim, the stair and a shadow as long as it is high."""
    c.keep_clear(disc(place, radius * 1.25))
    c.disc_shadow(place, radius, radius * 0.8)
    step = c.shadow_step
    c.circle(place, radius, shade(colour, 0.6))
    c.circle(place - step * radius * 0.03, radius * 0.95, shade(colour, 1.08))
    c.circle(place, radius * 0.84, colour)
    c.circle(place + step * radius * 0.3, radius * 0.5, shade(colour, 0.94))
    for k in range(3):
        spoke = cmath.rect(radius * 0.84, k * math.pi / 3 + 0.3)
        c.line([place - spoke, place + spoke], shade(colour, 0.87), 0.008)
    c.circle(place, radius * 0.1, shade(colour, 0.6))


def tennis_court(c: Canvas, place: complex, length: float, court: Colour, apron: Colour) -> None:
    """A tennis court with its lines and net, the long side along y, 0.55 times as wide as long."""
    c.fill(rectangle(place, length * 0.56, length), apron)
    width, depth = length * 0.34, length * 0.72
    c.fill(rectangle(place, width, depth), court)
    white, thin = (240, 240, 236), length * 0.014
    edge = rectangle(place, width, depth)
    c.line([*edge, edge[0]], white, thin)
    for x in (-0.375, 0.375):
        c.line([place + complex(x * width, -depth / 2), place + complex(x * width, depth / 2)], white, thin)
    for y in (-0.27, 0.27):
        c.line(
            [place + complex(-0.375 * width, y * depth), place + complex(0.375 * width, y * depth)],
            white,
            thin,
        )
    c.line([place - 0.27j * depth, place + 0.27j * depth], white, thin)
    net = [place - width * 0.58, place + width * 0.58]
    c.shadow([*net, *net[::-1]], length * 0.05)
    c.line(net, (36, 38, 40), length * 0.022)


def diamond(c: Canvas, place: complex, turn: complex, radius: float, dirt: Colour) -> None:
    """A baseball field: a fan of grass, the dirt infield with its square of grass, bases, foul lines.

    `place` is home plate, the field opens towards `turn`.
    """
    fan = [place, *(place + turn * cmath.rect(radius, math.radians(a)) for a in range(-45, 46, 9))]
    c.keep_clear(fan)
    c.fill(band([*fan, fan[0]], radius * 0.06), shade(dirt, 1.05))
    c.fill(fan, c.furrows((66, 112, 54), (92, 140, 70), c.rng.uniform(0, 3), radius * 0.18))
    infield = [place, *(place + turn * cmath.rect(radius * 0.56, math.radians(a)) for a in range(-45, 46, 9))]
    c.fill(infield, dirt)
    grass = placed([0.07 + 0j, 0.25 + 0.18j, 0.43, 0.25 - 0.18j], place, turn * radius)
    c.fill(grass, (84, 130, 62))
    c.circle(place + turn * radius * 0.25, radius * 0.045, dirt)
    for angle in (-math.pi / 4, math.pi / 4):
        c.line([place, place + turn * cmath.rect(radius, angle)], (236, 232, 222), radius * 0.018)
    for p in (0.0, 0.25 + 0.25j, 0.5, 0.25 - 0.25j):
        c.fill(rectangle(place + turn * radius * p, radius * 0.05, radius * 0.05, turn), (244, 244, 240))


def greenhouse(c: Canvas, place: complex, size: tuple[float, float], colour: Colour) -> None:
    """A long greenhouse along y: two slopes of glazing with cross bars."""
    width, length = size
    base = rectangle(place, width, length)
    c.keep_clear(base)
    c.shadow(base, width * 0.45)
    away = c.shadow_step.real > 0
    for side in (1, -1):
        lit = 0.82 if (side > 0) == away else 1.06
        c.fill(rectangle(place + side * width / 4, width / 2, length), shade(colour, lit))
    bars = max(4, round(length / 0.09))
    for k in range(bars + 1):
        y = 1j * length * (k / bars - 0.5)
        c.line([place - width / 2 + y, place + width / 2 + y], shade(colour, 0.7), 0.008)
    c.line([place - 0.5j * length, place + 0.5j * length], shade(colour, 1.2), 0.014)


def road(c: Canvas, path: Shape, width: float, *, lanes: bool = True) -> None:
    """An asphalt road with pale edges and a dashed middle line."""
    c.keep_clear(band(path, width * 1.15))
    c.fill(band(path, width * 1.12), (150, 146, 138))
    c.fill(band(path, width), "asphalt")
    if not lanes:
        return
    for a, b in itertools.pairwise(path):
        dashes = max(1, round(abs(b - a) / 0.12))
        for k in range(dashes):
            c.line([a + (b - a) * k / dashes, a + (b - a) * (k + 0.5) / dashes], (226, 222, 206), 0.012)


def traffic(c: Canvas, start: complex, end: complex, width: float, cars: int) -> None:
    """Cars on both lanes of a straight road."""
    along = (end - start) / abs(end - start)
    for k in range(cars):
        where = (k + c.rng.uniform(0.15, 0.85)) / cars
        side = c.rng.choice((1, -1))
        car(c, start + (end - start) * where + along * 1j * side * width / 4, along * side, 0.085)
