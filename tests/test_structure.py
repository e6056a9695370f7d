"""The house: every import of the package points down the floors below, and no circle of files or rooms is left."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = (
    "cli captioner clipscore report",
    "runners",
    "export",
    "tasks",
    "metrics",
    "build prepare",
    "weights datasets",
    "models",
    "config",
    "processors",
    "checkpoint",
    "distributed",
    "precision files registry",
    "batch errors",
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
