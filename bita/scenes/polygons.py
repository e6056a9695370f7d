"""Outlines of tiles: in the scene's reference system, and on the globe as RFC 7946 wants them.

On the globe an edge gets more corners where a straight line between longitudes and latitudes would leave the tile's by
more than a quarter of a pixel; what crosses the 180th meridian is cut there, and a tile with a pole in it reaches it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bita.scenes.georeference import Georeference, Places
from bita.scenes.windows import Tile

if TYPE_CHECKING:
    from shapely import MultiPolygon, Polygon

_PIECES = (1, 4, 16, 64)
"""Into how many an edge is cut, the fewest that are enough."""
_OFF = 0.25
"""Pixels."""
DIGITS = 8
"""Of degrees: about a millimetre."""


def outline(tile: Tile, where: Georeference) -> Polygon:
    """Return a tile's polygon in the scene's reference system, counter-clockwise."""
    from shapely import Polygon
    from shapely.geometry.polygon import orient

    return orient(Polygon(where.to_map(_ring(tile, 1)[:-1])))


def globe_outline(tile: Tile, where: Georeference) -> Polygon | MultiPolygon:
    """Return a tile's polygon in longitude and latitude, counter-clockwise, cut at the 180th meridian.

    Args:
        tile: of the scene.
        where: its `lonlat` must be there.
    """
    for pieces in _PIECES:
        places = where.to_map(_ring(tile, pieces))
        ring = _unwrapped(where.to_lonlat(places))
        if pieces == _PIECES[-1] or _bends(places, ring, tile, where) <= _OFF:
            break
    return _cut(ring)


def _ring(tile: Tile, pieces: int) -> Places:
    """Return the corners of a tile, and `pieces` - 1 places on each edge; the first place again as the last."""
    left, top, right, bottom = tile.x, tile.y, tile.x + tile.width, tile.y + tile.height
    corners = np.array([(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)], float)
    shares = (np.arange(4 * pieces + 1) / pieces)[:, None]
    first = np.minimum(shares.astype(int), 3)[:, 0]
    return corners[first] + (corners[first + 1] - corners[first]) * (shares - first[:, None])


def _unwrapped(ring: Places) -> Places:
    """Return a ring of longitudes and latitudes in which no step is longer than 180 degrees."""
    longitudes = np.unwrap(ring[:, 0], period=360.0)
    return np.stack([longitudes, ring[:, 1]], axis=1)


def _bends(places: Places, ring: Places, tile: Tile, where: Georeference) -> float:
    """Return how far the middles of a ring's straight edges on the globe lie from those on the map, in pixels."""
    middles = where.from_lonlat((ring[1:] + ring[:-1]) / 2)
    pixel = np.linalg.norm(places[len(places) // 4] - places[0]) / tile.width
    off = np.linalg.norm(middles - (places[1:] + places[:-1]) / 2, axis=1).max() / pixel
    return float(off) if np.isfinite(off) else np.inf


def _cut(ring: Places) -> Polygon | MultiPolygon:
    """Return the polygon or polygons of an unwrapped ring, between -180 and 180 degrees."""
    from shapely import MultiPolygon, Polygon, box, make_valid, union_all
    from shapely.affinity import translate
    from shapely.geometry.polygon import orient

    if abs(ring[-1, 0] - ring[0, 0]) > 180:  # once around a pole
        pole = 90.0 if ring[:, 1].mean() > 0 else -90.0
        ring = np.concatenate([ring, [(ring[-1, 0], pole), (ring[0, 0], pole)]])
    whole = make_valid(Polygon(ring))
    turns = range(int((ring[:, 0].min() + 180) // 360), int((ring[:, 0].max() + 180) // 360) + 1)
    cut = [translate(whole, -360.0 * turn).intersection(box(-180, -90, 180, 90)) for turn in turns]
    merged = union_all(
        cut, grid_size=10.0**-DIGITS
    )  # on which both sides of a cut meet again, and no corner twice
    parts = [part for part in getattr(merged, "geoms", [merged]) if part.area > 0]
    rounded = [orient(Polygon(np.round(part.exterior.coords, DIGITS))) for part in parts]
    return rounded[0] if len(rounded) == 1 else MultiPolygon(rounded)
