"""What is known about a scene."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """The facts of a scene; None where a fact has no meaning for its kind, or a caption does not state it."""

    kind: str | None
    count: int | None = None
    """How many main objects: airplanes, boats, courts, roads that meet …"""
    colour: str | None = None
    arrangement: str | None = None
    surroundings: str | None = None
