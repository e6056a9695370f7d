"""Scenes: rasters that are read tile by tile, so that the memory needed does not grow with them.

Samples become 8-bit RGB by the rule of `bita.processors.rgb`, but for one stretch a scene: its percentiles are those of
an overview, or without one of windows spread evenly over the raster. Whatever GDAL opens is a scene, a mosaic (VRT)
too.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from bita.errors import UserError, first_line
from bita.machine import cores
from bita.processors.rgb import ImageOpener, Stretch, in_one_line
from bita.scenes.georeference import Georeference
from bita.scenes.windows import Tile

if TYPE_CHECKING:
    from pyproj import CRS

RGB = npt.NDArray[np.uint8]
CACHE = 256 << 20
"""Bytes that GDAL may keep of decoded blocks, as rasterio hands them on; a row of blocks of a wide scene fits."""
_STRIP = 1 << 20
"""Pixels that are read at once, of tiles beside each other."""
_SAMPLED = 512
"""Percentiles are taken from the smallest overview whose longer side has so many pixels; from none of over four times
as many."""
_WINDOWS, _SIDE = 12, 64
"""Without overviews: windows across and down, and their side in pixels."""
_TIMES = (("IMAGERY", "ACQUISITIONDATETIME"), (None, "ACQUISITIONDATETIME"), (None, "TIFFTAG_DATETIME"))
"""Where GDAL says when an image was taken: domain and tag."""


@dataclass(frozen=True)
class View:
    """A tile as a model sees it: read already, made RGB when that is asked for, in any thread.

    Attributes:
        tile: which one.
        valid: share of the tile's pixels that have data, 0 to 1.
        show: what makes `pixels`.
    """

    tile: Tile
    valid: float
    show: Callable[[], RGB]

    @cached_property
    def pixels(self) -> RGB:
        """(side, side, 3) RGB."""
        return self.show()

    def open_with(self, opener: ImageOpener) -> Image.Image:
        """See `bita.inference.views.Openable`."""
        with in_one_line(f"tile {self.tile.number}"):
            return opener.convert(Image.fromarray(self.pixels))


class Scene:
    """One raster, to be used in a `with`; one thread at a time may read.

    Args:
        path: of the raster.
        bands: three band numbers from 1 that become red, green and blue; None: the first three, or the only one.
        crs: reference system that counts instead of the raster's.
        like: a scene onto whose pixels this one is resampled; None: its own pixels.

    Attributes:
        where: the way from its pixels to the ground.

    Raises:
        UserError: it does not open, has not the bands, or is of complex numbers.
    """

    def __init__(
        self,
        path: Path,
        bands: Sequence[int] | None = None,
        crs: CRS | None = None,
        like: Scene | None = None,
    ) -> None:
        self.path = path
        self._exit = contextlib.ExitStack()
        rasterio = _rasterio()
        with self._one_line():
            self._exit.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE, GDAL_NUM_THREADS=str(cores())))
            self._exit.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            try:
                self._source = self._exit.enter_context(rasterio.open(path))
                self._dataset = self._source if like is None else self._onto(like)
                self.bands = self._three(bands)
                self.where = Georeference.of(self._dataset, crs)
            except BaseException:
                self._exit.close()
                raise
        self._stretches: dict[int, Stretch] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self._dataset.width, self._dataset.height

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files that it is read from: its own, those that belong to it, and of a mosaic its parts, mosaics too.

        Raises:
            UserError: a part does not open.
        """
        found, waiting = {self.path: None}, list(self._source.files)
        while waiting:
            path = Path(waiting.pop(0))
            statistics = path.name.endswith(".aux.xml")  # which come and go
            if path in found or statistics or not path.is_file():
                continue
            found[path] = None
            if path.suffix.lower() == ".vrt":  # GDAL names the parts of the outer one alone
                with self._one_line(), _rasterio().open(path) as part:
                    waiting += part.files
        return tuple(found)

    @property
    def coarsest(self) -> tuple[int, int]:
        """Width and height of its coarsest overview; its own where it has none."""
        level = max((1, *self._source.overviews(self.bands[0])))
        return -(-self._source.width // level), -(-self._source.height // level)

    @property
    def block_bytes(self) -> int:
        """Bytes that its largest block has, all bands decoded."""
        shapes = zip(self._source.block_shapes, self._source.dtypes, strict=True)
        largest = max(rows * columns * np.dtype(kind).itemsize for (rows, columns), kind in shapes)
        return largest * int(self._source.count)

    @property
    def time(self) -> str | None:
        """When it was taken, as its tags say, in ISO 8601 (UTC); None where they do not."""
        for domain, name in _TIMES:
            text = str(self._source.tags(ns=domain).get(name, "")).strip().replace("T", " ").rstrip("Z")
            date, _, clock = text.partition(" ")
            with contextlib.suppress(ValueError):
                return str(np.datetime64(f"{date.replace(':', '-')}T{clock or '00:00:00'}", "s")) + "Z"
        return None

    def view(self, tile: Tile, window: tuple[int, int], side: int) -> View:
        """Read one tile.

        Args:
            tile: of the scene.
            window: (width, height) of a whole tile in the scene's pixels.
            side: of a whole tile's image in pixels; beyond the edge of the scene it is black.

        Raises:
            UserError: the raster is broken there.
        """
        return next(self.views([tile], window, side))

    def views(self, tiles: Iterable[Tile], window: tuple[int, int], side: int) -> Iterator[View]:
        """Read tiles; those beside each other at once where they are not resampled. Arguments as of `view`."""
        for strip in self._strips(tiles, window == (side, side)):
            left, right = strip[0].x, max(tile.x + tile.width for tile in strip)
            whole = replace(strip[0], width=right - left)
            shape = (whole.height, whole.width)
            if len(strip) == 1:
                width, height = (
                    max(1, round(own * side / of))
                    for own, of in zip((whole.width, whole.height), window, strict=True)
                )
                shape = (height, width)
            with self._one_line():
                show, valid = self._read(whole, shape)
            for tile in strip:
                own = slice(tile.x - left, tile.x - left + tile.width if len(strip) > 1 else None)
                yield View(tile, _share(valid[:, own]), partial(self._pixels, show, own, side))

    def _strips(self, tiles: Iterable[Tile], plain: bool) -> Iterator[list[Tile]]:
        """Tiles that are read at once; of a mosaic, whose parts may be resampled, each alone."""
        strip: list[Tile] = []
        together = plain and self._dataset.driver != "VRT"
        for tile in tiles:
            if strip:
                end, pixels = max(last.x + last.width for last in strip), _STRIP // tile.height
                fits = tile.x <= end and tile.x + tile.width - strip[0].x <= pixels
                if not (together and fits and (tile.y, tile.height) == (strip[0].y, strip[0].height)):
                    yield strip
                    strip = []
            strip.append(tile)
        if strip:
            yield strip

    def _pixels(self, show: Callable[[slice], RGB], own: slice, side: int) -> RGB:
        """Return the image of a tile, its columns in what was read."""
        shown = show(own)
        shown = shown[::-1] if self.where.mirrored else shown
        if shown.shape[:2] == (side, side):
            return shown
        padded = np.zeros((side, side, 3), np.uint8)
        padded[: shown.shape[0], : shown.shape[1]] = shown
        return padded

    def _read(
        self, tile: Tile, shape: tuple[int, int]
    ) -> tuple[Callable[[slice], RGB], npt.NDArray[np.bool_]]:
        """Return what makes RGB pixels of columns of a tile (H, W, 3), and where it has data in any band (H, W)."""
        from rasterio.enums import Resampling
        from rasterio.windows import Window

        resampling = Resampling.nearest
        if shape != (tile.height, tile.width) and self._palette is None:
            fewer = shape[0] * shape[1] < tile.height * tile.width
            resampling = Resampling.average if fewer else Resampling.bilinear
        bands = sorted(set(self.bands))
        window = Window(tile.x, tile.y, tile.width, tile.height)
        values, valid = self._samples(self._dataset, bands, shape, window, resampling)
        palette, order = self._palette, [bands.index(band) for band in self.bands]
        there = np.asarray(valid.any(axis=0))
        if palette is not None:
            return lambda own: palette[values[0, :, own]] * there[:, own, None], there
        if values.dtype == np.uint8:  # a band alone may be full where nodata is 255
            return lambda own: np.stack([values[k, :, own] * there[:, own] for k in order], axis=2), there
        self._stretches = self._stretches or self._stretch(bands)
        ways = [self._stretches[band] for band in bands]
        measured = np.stack([way.measured(*own) for way, *own in zip(ways, values, valid, strict=True)])

        def stretched(own: slice) -> RGB:
            parts = zip(ways, values[:, :, own], measured[:, :, own], strict=True)
            shown = [way(*part) for way, *part in parts]
            return np.stack([shown[k] for k in order], axis=2)

        return stretched, np.asarray(measured.any(axis=0))

    def _samples(
        self,
        dataset: Any,
        bands: list[int],
        shape: tuple[int, int],
        window: Any = None,
        resampling: Any = None,
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Return samples and where they are data, both (B, H, W)."""
        from rasterio.enums import MaskFlags, Resampling

        flags = dataset.mask_flag_enums
        whole = all(MaskFlags.all_valid in flags[band - 1] for band in bands)
        found = dataset.read(
            bands,
            window=window,
            out_shape=(len(bands), *shape),
            resampling=resampling or Resampling.nearest,
            masked=not whole,
        )
        return np.ma.getdata(found), ~np.ma.getmaskarray(found)

    def _stretch(self, bands: list[int]) -> dict[int, Stretch]:
        """Return the stretch of each band, from an overview or from windows."""
        from rasterio.windows import Window

        longest = max(self._source.width, self._source.height)
        levels = [
            level for level in (1, *self._source.overviews(bands[0])) if longest / level <= 4 * _SAMPLED
        ]
        fit = [level for level in levels if longest / level >= _SAMPLED] or levels[:1]
        if fit:
            shape = (-(-self._source.height // fit[-1]), -(-self._source.width // fit[-1]))
            parts = [self._samples(self._source, bands, shape)]
        else:
            sides = [min(_SIDE, self._source.height), min(_SIDE, self._source.width)]
            rows, columns = (
                np.linspace(0, size - side, _WINDOWS).astype(int).tolist()
                for size, side in zip((self._source.height, self._source.width), sides, strict=True)
            )
            windows = [Window(x, y, sides[1], sides[0]) for y in rows for x in columns]
            parts = [self._samples(self._source, bands, (sides[0], sides[1]), window) for window in windows]
        found = {}
        for k, band in enumerate(bands):
            values = np.concatenate([values[k].ravel() for values, _ in parts])
            there = np.concatenate([valid[k].ravel() for _, valid in parts])
            found[band] = Stretch.of(values, there)
        return found

    def _three(self, bands: Sequence[int] | None) -> tuple[int, int, int]:
        """Return the bands that become red, green and blue; and see whether they can."""
        from rasterio.enums import ColorInterp

        count = self._source.count
        found = tuple(bands) if bands is not None else ((1, 2, 3) if count >= 3 else (1, 1, 1))
        if not count:
            raise UserError("holds no bands of its own (name one of its subdatasets)")
        if len(found) != 3 or min(found) < 1 or max(found) > count:
            raise UserError(
                f"bands {list(found)} are not three numbers from 1 to {count}, the raster's bands"
            )
        if any("complex" in kind for kind in self._source.dtypes):
            raise UserError("is of complex numbers; write their amplitude as a raster first")
        self._palette = None
        if self._source.colorinterp[0] == ColorInterp.palette and set(found) == {1}:
            self._palette = np.zeros((1 << 16, 3), np.uint8)
            for value, colour in self._source.colormap(1).items():
                self._palette[value] = colour[:3]
        return found[0], found[1], found[2]

    def _onto(self, like: Scene) -> Any:
        """Return the raster resampled onto another's pixels; as it is where both have no place and one size."""
        from rasterio.enums import ColorInterp, MaskFlags, Resampling
        from rasterio.vrt import WarpedVRT

        other, own = like._dataset, self._source
        if not own.crs and not other.crs and own.transform == other.transform and own.shape == other.shape:
            return own
        if not own.crs or not other.crs:
            raise UserError(
                f"and {like.path}: both need a coordinate reference system and a transform to be compared"
            )
        whole = all(MaskFlags.all_valid in flags for flags in own.mask_flag_enums)
        palette = ColorInterp.palette in own.colorinterp
        return self._exit.enter_context(
            WarpedVRT(
                own,
                crs=other.crs,
                transform=other.transform,
                width=other.width,
                height=other.height,
                resampling=Resampling.nearest if palette else Resampling.bilinear,
                add_alpha=whole,
            )
        )

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turn what GDAL says into a line that names the raster."""
        from rasterio.errors import RasterioError

        try:
            yield
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        except (OSError, RasterioError) as error:
            raise UserError(f"{self.path}: cannot be read ({first_line(error.__cause__ or error)})") from None


def _share(valid: npt.NDArray[np.bool_]) -> float:
    return round(np.count_nonzero(valid) / valid.size, 4)


def _rasterio() -> Any:
    """Return rasterio.

    Raises:
        UserError: it is not installed.
    """
    try:
        import rasterio
    except ModuleNotFoundError:
        raise UserError('scenes need rasterio and others: pip install "bita[scenes]"') from None
    return rasterio
