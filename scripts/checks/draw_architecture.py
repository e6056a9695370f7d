"""Draw `docs/architecture.svg`: rooms on their floors, and which imports which, from the imports themselves.

    python scripts/checks/draw_architecture.py

The floors stand here; tests/test_structure.py holds the imports to them. An arrow that others imply is left out.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from html import escape
from itertools import pairwise
from pathlib import Path

from bita.commands import program

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs/architecture.svg"
FLOORS = (
    "cli",
    "app",
    "scenes reports",
    "inference",
    "runners",
    "export",
    "tasks",
    "metrics",
    "build prepare",
    "weights datasets",
    "models",
    "config",
    "processors",
    "checkpoint packages",
    "distributed",
    "precision compiling files records registry machine liveness commands",
    "batch errors magic",
    "version",
)
"""From the roof to the ground; a name is a room, that is a folder of the package, or a file beside the rooms. The front
door, `bita/__init__.py`, stands above all."""


def rooms() -> dict[str, int]:
    """Room → its floor, the ground being 0."""
    return {room: level for level, names in enumerate(reversed(FLOORS)) for room in names.split()}


def sources() -> dict[str, Path]:
    """Module → file, of the whole package."""
    found = {}
    for path in (ROOT / "bita").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    """Return the room of a module; the front door is `bita`."""
    return module.split(".")[1] if "." in module else "bita"


def imports(module: str, path: Path, known: set[str]) -> Iterator[str]:
    """Modules of ours that a file imports, at its top, inside functions, and for types."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            for name in node.names:
                target = f"{base}.{name.name}" if f"{base}.{name.name}" in known else base
                if target in known:
                    yield target
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)


def arrows() -> set[tuple[str, str]]:
    """(module, module that it imports), of the whole package."""
    found = sources()
    known = set(found)
    return {
        (module, target)
        for module, path in found.items()
        for target in imports(module, path, known)
        if target != module
    }


WIDTH, BOX, HEIGHT, FLOOR, MARGIN, GAP = 980, 128, 46, 84, 20, 14
"""Of the picture, a room's box, its height, a floor, the picture's margin, the least space between boxes; pixels."""
Place = tuple[str, str, int]
"""What stands on a floor: a room (its name twice), or an arrow (from, to) on its way through that floor."""


def room_imports() -> set[tuple[str, str]]:
    """(room, room that it imports), without what others imply."""
    below: dict[str, set[str]] = {}
    for a, b in arrows():
        if room_of(a) != room_of(b) and room_of(a) != "bita":
            below.setdefault(room_of(a), set()).add(room_of(b))

    def reached(room: str) -> set[str]:
        return {room}.union(*(reached(other) for other in below.get(room, ())))

    return {
        (room, other)
        for room, others in below.items()
        for other in others
        if not any(other in reached(between) for between in others - {other})
    }


def ordered(levels: Mapping[int, list[Place]], links: Mapping[Place, list[Place]]) -> None:
    """Sort every floor, in place, so that few arrows cross: each stands at the middle of what it is linked to."""
    for turn in range(12):
        for level in sorted(levels, reverse=turn % 2 == 0):
            beside = levels.get(level + (1 if turn % 2 == 0 else -1), [])
            at = {place: (number + 0.5) / len(beside) for number, place in enumerate(beside)}
            own = {place: (number + 0.5) / len(levels[level]) for number, place in enumerate(levels[level])}

            def middle(place: Place, at: dict[Place, float] = at, own: dict[Place, float] = own) -> float:
                known = [at[other] for other in links.get(place, ()) if other in at]
                return sum(known) / len(known) if known else own[place]

            levels[level].sort(key=lambda place: (middle(place), place))


def places(floor: Mapping[str, int], imported: set[tuple[str, str]]) -> dict[Place, float]:
    """Return where each stands: its middle, from the left."""
    levels: dict[int, list[Place]] = {level: [] for level in floor.values()}
    links: dict[Place, list[Place]] = {}
    for room in sorted(floor):
        levels[floor[room]].append((room, room, floor[room]))
    for a, b in sorted(imported):
        way = waypoints(a, b, floor)
        for place in way[1:-1]:
            levels[place[2]].append(place)
        for one, other in pairwise(way):
            links.setdefault(one, []).append(other)
            links.setdefault(other, []).append(one)
    ordered(levels, links)
    found = {}
    for line in levels.values():
        widths = [BOX if a == b else GAP for a, b, _ in line]
        space = (WIDTH - 2 * MARGIN - sum(widths)) / (len(line) + 1)
        left = MARGIN + space
        for place, width in zip(line, widths, strict=True):
            found[place] = left + width / 2
            left += width + space
    return found


def waypoints(a: str, b: str, floor: Mapping[str, int]) -> list[Place]:
    """Return what an arrow passes: its room, itself on each floor between, the room that is imported."""
    between = range(floor[a] - 1, floor[b], -1)
    return [(a, a, floor[a]), *((a, b, level) for level in between), (b, b, floor[b])]


def says(room: str) -> str:
    """Return what a room says that it is: the first words of its docstring."""
    path = ROOT / "bita" / room
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    first = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
    return first


def picture() -> str:
    """Return the drawing, as SVG."""
    floor, imported = rooms(), room_imports()
    at, top = places(floor, imported), len(FLOORS) - 1

    def y(level: int) -> int:
        return MARGIN + (top - level) * FLOOR

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y(0) + HEIGHT + MARGIN}" '
        'font-family="sans-serif" font-size="14">',
        "<title>The rooms of bita: an arrow points at what is imported</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0L8,4L0,8z" fill="#567"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for level in range(len(FLOORS)):
        shade = "#f3f5f8" if level % 2 else "#fff"
        lines.append(f'<rect y="{y(level) - 19}" width="{WIDTH}" height="{FLOOR}" fill="{shade}"/>')
    for a, b in sorted(imported):
        way = waypoints(a, b, floor)
        path = f"M{at[way[0]]:.0f},{y(floor[a]) + HEIGHT}"
        for one, other in pairwise(way):
            start, end = (at[one], y(one[2]) + HEIGHT), (at[other], y(other[2]))
            half = (start[1] + end[1]) / 2
            path += f"C{start[0]:.0f},{half:.0f} {end[0]:.0f},{half:.0f} {end[0]:.0f},{end[1]}"
            if other[2] != floor[b]:
                path += f"V{end[1] + HEIGHT}"
        lines.append(f'<path d="{path}" fill="none" stroke="#567" marker-end="url(#tip)"/>')
    for room, level in sorted(floor.items()):
        left = at[room, room, level] - BOX / 2
        is_folder = (ROOT / "bita" / room).is_dir()
        lines += [
            f"<g><title>{escape(says(room))}</title>",
            f'<rect x="{left:.0f}" y="{y(level)}" width="{BOX}" height="{HEIGHT}" rx="5" '
            f'fill="{"#dbe8f6" if is_folder else "#fdf3d9"}" stroke="#345"/>',
            f'<text x="{left + BOX / 2:.0f}" y="{y(level) + HEIGHT / 2 + 5:.0f}" text-anchor="middle">'
            f"{room}{'/' if is_folder else '.py'}</text></g>",
        ]
    return "\n".join([*lines, "</svg>", ""])


@program
def main() -> int:
    """Draw it."""
    PICTURE.write_text(picture(), encoding="utf-8")
    print(PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
