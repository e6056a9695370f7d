"""Outlines of tiles: in the scene's reference system, and on the globe as RFC 7946 wants them.

On the globe an edge gets more corners where a straight line between longitudes and latitudes would leave the tile's by
more than a quarter of a pixel; what crosses the 180th meridian is cut there, and a tile with a pole in it reaches it.
Of a tile that reaches off the earth, as at the rim of a geostationary image, it is the part whose edges are on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

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


def outlines(tiles: Sequence[Tile], where: Georeference) -> list[Polygon]:
    """Return the polygon of each of several tiles in the scene's reference system, counter-clockwise."""
    import shapely

    return list(_oriented(shapely.linearrings(_at_once(where.to_map, _rings(tiles, 1)[:, :-1]))))


def globe_outline(tile: Tile, where: Georeference) -> Polygon | MultiPolygon | None:
    """Return a tile's polygon in longitude and latitude, counter-clockwise, cut at the 180th meridian.

    None where not three places of its edges are on the earth.

    Args:
        tile: of the scene.
        where: its `lonlat` must be there.
    """
    return globe_outlines([tile], where)[0]


def globe_outlines(tiles: Sequence[Tile], where: Georeference) -> list[Polygon | MultiPolygon | None]:
    """Return `globe_outline` of each of several tiles, which together take a tenth of the time."""
    found: list[Any] = [None] * len(tiles)
    left = np.arange(len(tiles))
    for pieces in _PIECES:
        rest = [tiles[number] for number in left.tolist()]
        places = _at_once(where.to_map, _rings(rest, pieces))
        rings = _at_once(where.to_lonlat, places)
        on_earth = np.isfinite(rings).all(axis=(1, 2))
        rings[on_earth] = _unwrapped(rings[on_earth])
        straight = (_bends(places, rings, rest, where) <= _OFF) | (pieces == _PIECES[-1])
        ready = on_earth & straight
        for number, polygon in zip(left[ready], _cut_each(rings[ready]), strict=True):
            found[number] = polygon
        left, rings = left[~ready], rings[~ready]
        if not len(left):
            break
    for number, ring in zip(left, rings, strict=True):
        found[number] = _part_on_earth(ring)
    return found


def _rings(tiles: Sequence[Tile], pieces: int) -> Places:
    """Corners of N tiles with `pieces` - 1 places on each edge between; the first again as the last: (N, P, 2)."""
    left, top, width, height = (
        np.array([(t.x, t.y, t.width, t.height) for t in tiles], float).reshape(-1, 4).T
    )
    right, bottom = left + width, top + height
    corners = np.array([(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)])
    shares = np.arange(4 * pieces + 1) / pieces
    first = np.minimum(shares.astype(int), 3)
    start, end = corners[first], corners[first + 1]
    return np.moveaxis(start + (end - start) * (shares - first)[:, None, None], 2, 0)


def _at_once(way: Callable[[Places], Places], places: Places) -> Places:
    """Transform places (…, 2) in one call."""
    return way(places.reshape(-1, 2)).reshape(places.shape)


def _unwrapped(rings: Places) -> Places:
    """Return rings of longitudes and latitudes (N, P, 2) in which no step is longer than 180 degrees."""
    longitudes = np.unwrap(rings[..., 0], period=360.0)
    return np.stack([longitudes, rings[..., 1]], axis=-1)


def _bends(places: Places, rings: Places, tiles: Sequence[Tile], where: Georeference) -> Places:
    """How far the middles of rings' straight edges on the globe lie from those on the map, in pixels: (N,)."""
    middles = _at_once(where.from_lonlat, (rings[:, 1:] + rings[:, :-1]) / 2)
    edges = places[:, places.shape[1] // 4] - places[:, 0]
    pixels = np.linalg.norm(edges, axis=-1) / [tile.width for tile in tiles]
    off = np.linalg.norm(middles - (places[:, 1:] + places[:, :-1]) / 2, axis=-1).max(axis=1) / pixels
    return np.where(np.isfinite(off), off, np.inf)


def _part_on_earth(ring: Places) -> Polygon | MultiPolygon | None:
    """Return what the finite places of a ring (P, 2) enclose, cut as by `_cut_each`; None where that is nothing."""
    places = ring[:-1][np.isfinite(ring[:-1]).all(axis=1)]
    if len(places) < 3:
        return None
    (found,) = _cut_each(_unwrapped(np.concatenate([places, places[:1]])[None]))
    return None if found.is_empty else found


def _cut_each(rings: Places) -> list[Polygon | MultiPolygon]:
    """Return the polygon or polygons of each unwrapped ring (N, P, 2), between -180 and 180 degrees."""
    import shapely

    plain = (np.abs(rings[:, -1, 0] - rings[:, 0, 0]) <= 180) & (np.abs(rings[..., 0]) < 180).all(axis=1)
    whole = shapely.make_valid(shapely.polygons(rings[plain]))
    merged = _merged(shapely.intersection(whole, shapely.box(-180, -90, 180, 90))[:, None])
    single = (shapely.get_type_id(merged) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(merged)
    coordinates, of = shapely.get_coordinates(shapely.get_exterior_ring(merged[single]), return_index=True)
    polygons = _oriented(shapely.linearrings(np.round(coordinates, DIGITS), indices=of))
    found: list[Any] = [None] * len(rings)
    for number, polygon in zip(np.flatnonzero(plain)[single], polygons, strict=True):
        found[number] = polygon
    return [_cut(ring) if polygon is None else polygon for ring, polygon in zip(rings, found, strict=True)]


def _cut(ring: Places) -> Polygon | MultiPolygon:
    """Return the polygon or polygons of an unwrapped ring, between -180 and 180 degrees."""
    from shapely import MultiPolygon, Polygon, box, make_valid
    from shapely.affinity import translate
    from shapely.geometry.polygon import orient

    if abs(ring[-1, 0] - ring[0, 0]) > 180:  # once around a pole
        pole = 90.0 if ring[:, 1].mean() > 0 else -90.0
        ring = np.concatenate([ring, [(ring[-1, 0], pole), (ring[0, 0], pole)]])
    whole = make_valid(Polygon(ring))
    turns = range(int((ring[:, 0].min() + 180) // 360), int((ring[:, 0].max() + 180) // 360) + 1)
    cut = [translate(whole, -360.0 * turn).intersection(box(-180, -90, 180, 90)) for turn in turns]
    merged = _merged(cut)
    parts = [part for part in getattr(merged, "geoms", [merged]) if part.area > 0]
    rounded = [orient(Polygon(np.round(part.exterior.coords, DIGITS))) for part in parts]
    return rounded[0] if len(rounded) == 1 else MultiPolygon(rounded)


def _oriented(rings: Any) -> Any:
    """Return the polygons of N rings, counter-clockwise."""
    import shapely

    return shapely.polygons(np.where(shapely.is_ccw(rings), rings, shapely.reverse(rings)))


def _merged(parts: Any) -> Any:
    """Return the union of parts (…, K), on a grid on which both sides of a cut meet again, and no corner is twice."""
    from shapely import union_all

    return union_all(parts, grid_size=10.0**-DIGITS, axis=-1)
