"""What a file of tiles says of each: the columns of captions and of changes, alike in every format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bita.scenes.windows import Tile

Row = dict[str, Any]
"""Column → value, as JSON holds it; the columns of `PLACE` are always there."""
Kind = Literal["int", "float", "text", "texts", "time"]
SUFFIXES = {"geojson": ".geojson", "gpkg": ".gpkg", "geoparquet": ".parquet", "csv": ".csv"}
"""Format → ending of its files."""

PLACE: dict[str, Kind] = {"tile": "int", "column": "int", "row": "int", "width": "int", "height": "int"}
"""A tile's number, its first column and row, its width and height in pixels of the scene."""


@dataclass(frozen=True)
class Layer:
    """The columns of a file, and how a map shows it.

    Attributes:
        name: of the table.
        columns: name → kind of value; every value but a place may be missing.
        label: an expression of QGIS that is written on each polygon.
        shade: column of 0 to 1 that colours it.
        good: whether 1 is drawn in green, and 0 in red; the other way round where False.
    """

    name: str
    columns: Mapping[str, Kind]
    label: str
    shade: str
    good: bool = True


CAPTIONS = Layer(
    "captions",
    {
        **PLACE,
        "scene": "text",
        "caption": "text",
        "candidates": "texts",
        "log_probability": "float",
        "score": "float",
        "confidence": "float",
        "valid": "float",
        "gsd": "float",
        "time": "time",
        "model": "text",
    },
    label='"caption"',
    shade="confidence",
)
CHANGES = Layer(
    "changes",
    {
        **PLACE,
        "before": "text",
        "after": "text",
        "caption_before": "text",
        "caption_after": "text",
        "rank": "int",
        "change": "float",
        "change_image": "float",
        "change_caption": "float",
        "confidence_before": "float",
        "confidence_after": "float",
        "valid": "float",
        "gsd": "float",
        "time_before": "time",
        "time_after": "time",
        "model": "text",
    },
    label='"caption_before" || \' → \' || "caption_after"',
    shade="change",
    good=False,
)


def place_of(tile: Tile) -> Row:
    """Return the columns of `PLACE`."""
    return {
        "tile": tile.number,
        "column": tile.x,
        "row": tile.y,
        "width": tile.width,
        "height": tile.height,
    }


def tile_of(row: Row) -> Tile:
    """Return the tile that a row is of."""
    return Tile(*(row[name] for name in PLACE))
