"""Scenes of countable things: airplanes, boats, tanks, courts, houses, cars, greenhouses, panels."""

from __future__ import annotations

import cmath
import itertools
import math

from bita.datasets.synthetic import ground, sprites
from bita.datasets.synthetic.canvas import Canvas, rectangle, shade
from bita.datasets.synthetic.facts import Facts
from bita.datasets.synthetic.ground import FAR, ROW, ROWS, SCATTERED


def airport(c: Canvas) -> Facts:
    """Airplanes on an apron."""
    around = c.rng.choice(("lawn", "bare ground"))
    count = ground.pick_count(c)
    arrangement = ground.pick_arrangement(c, count)
    colour = c.rng.choice(("white", "white", "gray", "blue"))
    ground.lay(c, around)
    edge = c.rng.uniform(0.68, 0.82)
    apron = [complex(-FAR, -edge), complex(FAR, -edge), complex(FAR, edge), complex(-FAR, edge)]
    c.keep_clear(apron)
    c.fill(apron, c.rng.choice(("concrete", "concrete", "asphalt")))
    for y in (0.06 - edge, edge - 0.06):
        c.line([complex(-FAR, y), complex(FAR, y)], (206, 176, 64), 0.016)
    for k in range(-4, 5):
        c.line([complex(k * 0.4, -edge), complex(k * 0.4, edge)], (134, 134, 132), 0.008)
    pitch = 0.46
    heading = cmath.rect(1, c.rng.choice((0.5, 0.5, -0.5, 0.36)) * math.pi)
    paint = sprites.paint(c, colour)
    if c.rng.random() < 0.5:
        side = c.rng.choice((1, -1))
        size = (c.rng.uniform(0.8, 1.4), 0.2)
        sprites.building(c, complex(c.rng.uniform(-0.4, 0.4), side * (edge + 0.12)), 1, size, (188, 188, 186))
    places = ground.positions(c, count, arrangement, pitch)
    length = 0.88 * ground.spacing(places, pitch)
    for place in places:
        turn = heading
        if arrangement == SCATTERED or count == 1:
            turn = cmath.rect(1, c.rng.uniform(0, 2 * math.pi))
        elif arrangement == ROWS and place.imag < 0:
            turn = heading.conjugate() if c.rng.random() < 0.9 else heading
        sprites.airplane(c, place, turn, length, shade(paint, c.rng.uniform(0.95, 1.05)))
    ground.dress(c, around)
    return Facts("airport", count, colour, arrangement, around)


def harbour(c: Canvas) -> Facts:
    """Boats moored at a pier that leaves the shore."""
    around = c.rng.choice(("lawn", "bare ground", "houses"))
    count = c.rng.choice((2, 3, 4, 6))
    arrangement = ROW if count < 4 else c.rng.choice((ROW, ROWS)) if count == 4 else ROWS
    colour = c.rng.choice(("white", "white", "red", "blue"))
    c.cover(c.rng.choice(("blue water", "green water")))
    shore = -0.72
    land = [complex(shore, -FAR), complex(shore, FAR), complex(-FAR, FAR), complex(-FAR, -FAR)]
    c.fill(land, "bare ground" if around == "bare ground" else "lawn")
    quay = rectangle(complex(shore, 0), 0.1, 2 * FAR)
    c.shadow(quay, 0.04)
    c.fill(quay, "concrete")
    c.keep_clear(
        [complex(shore - 0.08, -FAR), complex(shore - 0.08, FAR), complex(FAR, FAR), complex(FAR, -FAR)]
    )
    sides = (1,) if arrangement == ROW else (1, -1)
    each = count // len(sides)
    pitch, length = 0.33, 0.5
    reach = shore + 0.2 + each * pitch
    pier_y = -0.3 * length if arrangement == ROW else 0.0
    pier = rectangle(complex((shore + reach) / 2, pier_y), reach - shore, 0.085)
    c.shadow(pier, 0.05)
    c.fill(pier, (168, 156, 138))
    for k in range(round((reach - shore) / 0.07)):
        x = shore + 0.07 * k
        c.line([complex(x, pier_y - 0.04), complex(x, pier_y + 0.04)], (138, 124, 106), 0.008)
    for side in sides:
        for k in range(each):
            place = complex(shore + 0.22 + pitch * (k + 0.4), pier_y + side * (0.06 + length * 0.52))
            turn = cmath.rect(1, side * math.pi / 2 + c.rng.uniform(-0.06, 0.06))
            sprites.boat(c, place, turn, length * c.rng.uniform(0.93, 1.03), sprites.paint(c, colour))
    ground.dress(c, around)
    return Facts("harbour", count, colour, arrangement, around)


def storage_tanks(c: Canvas) -> Facts:
    """Round tanks on their pads."""
    around = c.rng.choice(("lawn", "bare ground", "water", "road"))
    count = ground.pick_count(c)
    arrangement = ground.pick_arrangement(c, count)
    colour = c.rng.choice(("white", "white", "gray", "brown"))
    ground.lay(c, around)
    pitch = 0.44
    places = ground.positions(c, count, arrangement, pitch)
    pad = "concrete" if around == "bare ground" else "bare ground"
    if arrangement != SCATTERED:
        low, high = min(p.imag for p in places) - pitch * 0.55, max(p.imag for p in places) + pitch * 0.55
        left, right = min(p.real for p in places) - pitch * 0.6, max(p.real for p in places) + pitch * 0.6
        c.fill([complex(left, low), complex(right, low), complex(right, high), complex(left, high)], pad)
    else:
        side = ground.spacing(places, pitch * 1.1)
        for place in places:
            c.fill(rectangle(place, side, side), pad)
    for a, b in itertools.pairwise(places):
        c.line([a, complex(a.real, b.imag), b], (176, 172, 164), 0.018)
    paint = sprites.paint(c, colour)
    for place in places:
        sprites.tank(c, place, pitch * c.rng.uniform(0.37, 0.42), shade(paint, c.rng.uniform(0.95, 1.05)))
    ground.dress(c, around)
    return Facts("storage tanks", count, colour, arrangement, around)


def tennis_courts(c: Canvas) -> Facts:
    """Tennis courts side by side or in two rows."""
    around = c.rng.choice(("lawn", "trees", "houses", "road"))
    count = c.rng.choice((1, 2, 3, 4, 4, 6))
    arrangement = ground.pick_arrangement(c, count, loose=False)
    colour = c.rng.choice(("blue", "green", "red"))
    ground.lay(c, around)
    per_row = count if arrangement != ROWS else count // 2
    length = 0.66
    apron = sprites.paint(
        c, c.rng.choice([other for other in ("green", "blue", "red", "gray") if other != colour])
    )
    court = sprites.paint(c, colour)
    pitch = complex(length * 0.565, length * 1.03)
    rows = 2 if arrangement == ROWS else 1
    for row in range(rows):
        for k in range(per_row):
            place = complex((k - (per_row - 1) / 2) * pitch.real, (row - (rows - 1) / 2) * pitch.imag)
            sprites.tennis_court(c, place, length, court, shade(apron, 0.85))
    c.keep_clear(rectangle(0, per_row * pitch.real * 1.06, rows * pitch.imag * 1.06))
    ground.dress(c, around)
    return Facts("tennis courts", count, colour, arrangement, around)


def baseball_fields(c: Canvas) -> Facts:
    """Baseball fields; four of them lie back to back."""
    around = c.rng.choice(("lawn", "trees", "houses", "road"))
    count = c.rng.choice((1, 1, 2, 2, 4))
    arrangement = {1: None, 2: ROW, 4: "in a circle"}[count]
    ground.lay(c, around)
    dirt = shade((176, 122, 78), c.rng.uniform(0.88, 1.1))
    if count == 1:
        sprites.diamond(c, complex(-0.1, -0.32), 1j, 0.64, dirt)
    elif count == 2:
        for side in (1, -1):
            sprites.diamond(c, complex(0.48 * side, -0.32), 1j, 0.64, dirt)
    else:
        for k in range(4):
            turn = cmath.rect(1, k * math.pi / 2)
            sprites.diamond(c, turn * 0.07, turn, 0.64, dirt)
        c.circle(0, 0.05, (170, 166, 158))
    ground.dress(c, around)
    return Facts("baseball fields", count, None, arrangement, around)


def residential(c: Canvas) -> Facts:
    """Houses beside a road."""
    around = c.rng.choice(("lawn", "trees", "bare ground"))
    count = c.rng.choice((2, 3, 4, 4, 6))
    arrangement = ground.pick_arrangement(c, count, loose=False)
    colour = c.rng.choice(("red", "gray", "brown", "blue"))
    ground.lay(c, around)
    pitch = 0.44
    both = arrangement == ROWS
    street = 0.0 if both else -0.42 * c.rng.choice((1, -1))
    sprites.road(c, [complex(-FAR, street), complex(FAR, street)], 0.17)
    sprites.traffic(c, complex(-FAR, street), complex(FAR, street), 0.17, 5)
    per_row = count // 2 if both else count
    roof = sprites.paint(c, colour)
    for k in range(count):
        row, column = divmod(k, per_row)
        y = (0.42 if row else -0.42) if both else 0.05
        place = complex((column - (per_row - 1) / 2) * pitch + c.rng.uniform(-0.03, 0.03), y)
        drive = [place, complex(place.real, street)]
        c.line(drive, (172, 168, 160), 0.06)
        c.keep_clear([p + s * 0.05 for s in (1, -1) for p in drive[::s]])
        size = pitch * c.rng.uniform(0.66, 0.74)
        sprites.house(c, place, c.rng.choice((1, 1, 1j)), size, shade(roof, c.rng.uniform(0.93, 1.07)))
    ground.dress(c, around)
    return Facts("residential area", count, colour, arrangement, around)


def parking_lot(c: Canvas) -> Facts:
    """Rows of parked cars on asphalt."""
    around = c.rng.choice(("lawn", "trees", "buildings", "road"))
    count = c.rng.choice((1, 2, 3, 4))
    ground.lay(c, around)
    spacing = 0.3
    half = spacing * count / 2 + 0.04
    middle = 0.0 if count > 2 else c.rng.uniform(-0.2, 0.2)
    width = c.rng.uniform(1.5, 1.8)
    lot = rectangle(1j * middle, width, 2 * half)
    c.keep_clear(rectangle(1j * middle, width * 1.04, 2 * half + 0.06))
    c.fill(rectangle(1j * middle, width + 0.04, 2 * half + 0.04), (164, 160, 152))
    c.fill(lot, "asphalt")
    slot = 0.105
    for row in range(count):
        y = middle + (row - (count - 1) / 2) * spacing
        slots = int((width - 0.12) / slot)
        for k in range(slots + 1):
            x = (k - slots / 2) * slot
            c.line([complex(x, y - 0.09), complex(x, y + 0.09)], (208, 208, 202), 0.009)
            if k < slots and c.rng.random() < 0.85:
                sprites.car(c, complex(x + slot / 2, y), c.rng.choice((1j, -1j)), 0.16)
    if around == "buildings":
        side = -1 if middle > 0 else 1
        place = complex(c.rng.uniform(-0.3, 0.3), side * (half + 0.3) + middle)
        grey = c.rng.choice(((176, 174, 170), (150, 140, 130), (120, 118, 120)))
        sprites.building(c, place, 1, (c.rng.uniform(0.9, 1.3), 0.42), grey)
        sprites.building(c, complex(-place.real, 2 * middle - place.imag), 1, (1.0, 0.42), grey)
    ground.dress(c, around)
    return Facts("parking lot", count, None, None, around)


def greenhouses(c: Canvas) -> Facts:
    """Long greenhouses side by side."""
    around = c.rng.choice(("lawn", "bare ground", "trees", "road"))
    count = ground.pick_count(c)
    arrangement = ground.pick_arrangement(c, count, loose=False)
    colour = c.rng.choice(("white", "blue", "gray"))
    ground.lay(c, around)
    per_row = count // 2 if arrangement == ROWS else count
    rows = 2 if arrangement == ROWS else 1
    pitch, length = 0.4, 0.62
    paint = sprites.paint(c, colour)
    yard = rectangle(0, per_row * pitch + 0.08, rows * (length + 0.1) + 0.06)
    c.fill(yard, "bare ground")
    c.keep_clear(yard)
    for row in range(rows):
        for k in range(per_row):
            place = complex((k - (per_row - 1) / 2) * pitch, (row - (rows - 1) / 2) * (length + 0.12))
            sprites.greenhouse(c, place, (pitch * 0.66, length), shade(paint, c.rng.uniform(0.95, 1.04)))
    ground.dress(c, around)
    return Facts("greenhouses", count, colour, arrangement, around)


def solar_panels(c: Canvas) -> Facts:
    """Rows of solar panels."""
    around = c.rng.choice(("lawn", "bare ground", "trees", "road"))
    count = c.rng.choice((1, 2, 3, 4))
    ground.lay(c, around)
    pitch, width = 0.38, c.rng.uniform(1.2, 1.4)
    yard = rectangle(0, width + 0.12, count * pitch + 0.06)
    c.keep_clear(yard)
    if around != "bare ground" and c.rng.random() < 0.4:
        c.fill(yard, "bare ground")
    blue = shade((34, 46, 92), c.rng.uniform(0.85, 1.2))
    for k in range(count):
        place = 1j * (k - (count - 1) / 2) * pitch
        row = rectangle(place, width, pitch * 0.6)
        c.shadow(row, 0.05)
        c.fill(row, blue)
        for y in (-0.3, 0.0, 0.3):
            c.line(
                [place - width / 2 + y * pitch * 1j, place + width / 2 + y * pitch * 1j],
                (126, 138, 166),
                0.01,
            )
        for j in range(round(width / 0.11) + 1):
            x = -width / 2 + 0.11 * j
            c.line(
                [place + complex(x, -pitch * 0.3), place + complex(x, pitch * 0.3)], (112, 124, 156), 0.006
            )
    ground.dress(c, around)
    return Facts("solar panels", count, None, None, around)
