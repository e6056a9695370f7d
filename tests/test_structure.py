"""The house: every import of the package points down the floors, and no circle of files or rooms is left."""

from __future__ import annotations

from scripts.checks.draw_architecture import FLOORS, arrows, room_of, rooms, sources


def test_every_room_has_a_floor() -> None:
    assert {room_of(module) for module in sources()} - {"bita"} == set(rooms())


def test_every_arrow_points_down() -> None:
    floor = rooms() | {"bita": len(FLOORS)}
    up = [
        f"{a} -> {b}"
        for a, b in sorted(arrows())
        if room_of(a) != room_of(b) and floor[room_of(a)] <= floor[room_of(b)]
    ]
    assert up == []


def test_no_files_import_each_other_in_a_circle() -> None:
    below: dict[str, set[str]] = {}
    for a, b in arrows():
        below.setdefault(a, set()).add(b)

    done: set[str] = set()

    def walk(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above[above.index(module) :], module))
        if module not in done:
            for other in sorted(below.get(module, ())):
                walk(other, (*above, module))
            done.add(module)

    for module in sorted(below):
        walk(module, ())
