"""Where pixels lie on the ground: from a raster's transform or control points, in any reference system or none.

Places in a raster are (x, y) in pixels from its upper left corner; whole numbers are corners of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bita.errors import UserError, first_line

if TYPE_CHECKING:
    from pyproj import CRS, Transformer

Places = npt.NDArray[np.float64]
"""(N, 2): x and y, or longitude and latitude."""
WGS84 = "EPSG:4326"


def crs_of(name: str) -> CRS:
    """Return the reference system of a name such as `EPSG:32633`, or of its WKT.

    Raises:
        UserError: there is no such system.
    """
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        return CRS.from_user_input(name)
    except CRSError as error:
        raise UserError(f"--crs {name}: {first_line(error)}; name one as EPSG:32633") from None


class Georeference:
    """The way from a raster's pixels to the ground.

    Args:
        size: (width, height) of the raster.
        to_map: (N, 2) places in the raster → (N, 2) in `crs`, y upwards.
        crs: their reference system; None: unknown.

    Attributes:
        mirrored: whether the raster shows the ground as in a mirror, its rows from south to north.
        lonlat: to WGS 84 and back; None where there is no way.
    """

    def __init__(
        self, size: tuple[int, int], to_map: Callable[[Places], Places], crs: CRS | None = None
    ) -> None:
        self.size, self.to_map, self.crs = size, to_map, crs
        self.lonlat = _to_lonlat(crs)
        centre = np.array(size) / 2
        origin, right, down = to_map(centre + np.array([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]))
        (a, d), (b, e) = right - origin, down - origin
        self.mirrored = bool(a * e - b * d > 0)

    @classmethod
    def of(cls, dataset: Any, crs: CRS | None = None) -> Georeference:
        """Return an open rasterio dataset's own; pixels themselves where it has none.

        Args:
            dataset: its transform counts, or its ground control points where it has no other.
            crs: counts instead of the dataset's.

        Raises:
            UserError: it has rational polynomials only, or `crs` is named for a raster that has no place.
        """
        from pyproj import CRS

        size, (points, points_crs) = (dataset.width, dataset.height), dataset.gcps
        plain = dataset.transform.is_identity
        if plain and points:
            found = CRS.from_user_input(points_crs) if points_crs else None
            return cls(size, _by_points(points), crs or found)
        if plain and dataset.rpcs is not None:
            raise UserError(
                "has rational polynomial coefficients only; orthorectify it first (gdalwarp -rpc -to RPC_DEM=DEM)"
            )
        found = CRS.from_user_input(dataset.crs) if dataset.crs else None
        a, b, c, d, e, f = tuple(dataset.transform)[:6]
        if plain and found is None:
            if crs is not None:
                raise UserError("says nowhere where it lies, so that --crs is of no use; give it a transform")
            e = -1  # rows downwards, as QGIS shows such a picture
        matrix, origin = np.array([[a, b], [d, e]]), np.array([c, f])
        return cls(size, lambda places: places @ matrix.T + origin, crs or found)

    def pixel_size(self) -> tuple[float, float] | None:
        """Return the width and height of a pixel at the raster's middle in metres on the ground; None if unknown."""
        if self.lonlat is None or self.crs is None:
            return None
        from pyproj import Geod

        middle = np.array(self.size) / 2
        steps = np.array([(-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5)])
        (left, right, up, down) = self.to_lonlat(self.to_map(middle + steps))
        geod = Geod(ellps="WGS84")
        across, along = geod.inv(*left, *right)[2], geod.inv(*up, *down)[2]
        usable = math.isfinite(across) and math.isfinite(along) and across > 0 and along > 0
        return (across, along) if usable else None

    def to_lonlat(self, places: Places) -> Places:
        """Transform (N, 2) places of `crs` to longitude and latitude; `lonlat` must be there."""
        assert self.lonlat is not None
        return np.stack(self.lonlat.transform(places[:, 0], places[:, 1]), axis=1)

    def from_lonlat(self, places: Places) -> Places:
        """Transform (N, 2) longitudes and latitudes to places of `crs`; `lonlat` must be there."""
        assert self.lonlat is not None
        back = self.lonlat.transform(places[:, 0], places[:, 1], direction="INVERSE")
        return np.stack(back, axis=1)


def _by_points(points: Sequence[Any]) -> Callable[[Places], Places]:
    """Return GDAL's fit of ground control points, its polynomial of the degree that they are enough for."""
    from rasterio.transform import GCPTransformer

    transformer = GCPTransformer(points)

    def to_map(places: Places) -> Places:
        found = transformer.xy(places[:, 1].tolist(), places[:, 0].tolist(), offset="ul")
        return np.stack([np.asarray(axis, np.float64) for axis in found], axis=1)

    return to_map


def _to_lonlat(crs: CRS | None) -> Transformer | None:
    """Return the transformation to WGS 84; None from an unknown system, or one that is not of the earth."""
    if crs is None:
        return None
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        return Transformer.from_crs(crs, WGS84, always_xy=True)
    except ProjError:
        return None
