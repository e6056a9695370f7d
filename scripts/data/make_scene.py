"""Draw a georeferenced scene of synthetic objects at known places: `python scripts/data/make_scene.py OUT.tif`.

A cell of `--cell` pixels holds one drawn picture, such as an airport or a bridge. One corner of the scene has
no data, as in a swath that was turned north; clouds in another and deep water in a third give it the range of
brightness that scenes have. `OUT.json` beside it says where what is: kind, column and row of the cell's
middle, and that place in the scene's reference system. Six bands of 16 bits like those of a satellite: blue,
green, red and three of infrared, so that --bands 3,2,1 shows it; UTM zone 33 north, tiled, compressed, with
overviews. It is written a strip of blocks at a time.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bita.commands import at_least, command_line, program
from bita.datasets.synthetic import SCENES, draw_scene
from bita.errors import UserError
from bita.files import replacing, user_path, write_json
from bita.scenes.rasters import CACHE

BLOCK = 512
BANDS = 6
GSD = 0.5
ORIGIN = (390_000.0, 5_820_000.0)
"""Upper left corner, metres."""
OFFSET, GAIN = 300, 40
"""Digital numbers of black, and of one step of 255; 0 is no data."""
OVERVIEWS = (4, 16)


def kind_of(seed: int, column: int, row: int) -> str:
    """Return what a cell shows."""
    return random.Random(f"{seed} {column} {row} kind").choice(list(SCENES))


def corner_of(column: int, row: int, cells: int) -> int | None:
    """Return the digital number that fills a cell in one of three corners; None elsewhere."""
    right, down = cells - 1 - column, cells - 1 - row
    if column + row < cells // 8:
        return 0
    if right + row < cells // 4:
        return OFFSET + GAIN * 255
    return OFFSET if column + down < cells // 4 else None


def digital_numbers(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Turn RGB (H, W, 3) into six bands (6, H, W)."""
    red, green, blue = np.moveaxis(picture.astype(np.uint16), 2, 0)
    infrared = [(red + weight * green) // (1 + weight) for weight in (1, 2, 3)]
    return OFFSET + GAIN * np.stack([blue, green, red, *infrared])


def strip(seed: int, side: int, cell: int, top: int, height: int) -> npt.NDArray[np.uint16]:
    """Return the rows from `top` on, (6, height, side); pictures at the edges are cut off there."""
    cells = -(-side // cell)
    values = np.zeros((BANDS, height, side), np.uint16)
    for row in range(top // cell, -(-(top + height) // cell)):
        for column in range(cells):
            first, last = max(top, row * cell), min(top + height, (row + 1) * cell)
            place = np.s_[:, first - top : last - top, column * cell : (column + 1) * cell]
            corner = corner_of(column, row, cells)
            if corner is not None:
                values[place] = corner
                continue
            key = f"{seed} {column} {row}"
            picture = digital_numbers(np.asarray(draw_scene(kind_of(seed, column, row), key, cell)[0]))
            values[place] = picture[:, first - row * cell : last - row * cell, : side - column * cell]
    return values


def objects(seed: int, side: int, cell: int) -> Iterator[dict[str, Any]]:
    """Cells that are whole and hold a picture."""
    for row in range(side // cell):
        for column in range(side // cell):
            if corner_of(column, row, -(-side // cell)) is None:
                x, y = (column + 0.5) * cell, (row + 0.5) * cell
                place = {"column": x, "row": y, "x": ORIGIN[0] + x * GSD, "y": ORIGIN[1] - y * GSD}
                yield {"kind": kind_of(seed, column, row)} | place


def make_scene(out: Path, side: int, cell: int, seed: int) -> None:
    """Write `out`, and the objects in it as JSON beside it."""
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.windows import Window

    profile = {"width": side, "height": side, "count": BANDS, "dtype": "uint16", "nodata": 0}
    profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "band"}
    profile |= {"compress": "deflate", "predictor": 2, "zlevel": 1, "crs": "EPSG:32633", "driver": "GTiff"}
    profile |= {"transform": rasterio.transform.from_origin(*ORIGIN, GSD, GSD)}
    with replacing(out) as temporary, rasterio.Env(GDAL_CACHEMAX=CACHE, GDAL_NUM_THREADS="ALL_CPUS"):
        with rasterio.open(temporary, "w", **profile) as file:
            file.update_tags(TIFFTAG_DATETIME="2024:06:21 10:30:00")
            for top in range(0, side, BLOCK):
                height = min(BLOCK, side - top)
                file.write(strip(seed, side, cell, top, height), window=Window(0, top, side, height))
                print(f"\r{top + height}/{side} rows", end="", file=sys.stderr, flush=True)
        with rasterio.open(temporary, "r+") as file:
            file.build_overviews([level for level in OVERVIEWS if side // level > 8], Resampling.average)
    print(file=sys.stderr)
    write_json(out.with_suffix(".json"), list(objects(seed, side, cell)))


@program
def main() -> int:
    """Parse and draw; 0, or the exit code of the mistake."""
    parser = command_line(__doc__)
    parser.add_argument("out", type=user_path, help="GeoTIFF to make")
    parser.add_argument(
        "--side", type=at_least(64), default=12_000, help="of the scene in pixels (%(default)s)"
    )
    parser.add_argument("--cell", type=at_least(64), default=256, help="of an object in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another draws another scene (%(default)s)")
    args = parser.parse_args()
    if args.cell > BLOCK:
        raise UserError(f"--cell {args.cell}: must be at most {BLOCK}")
    make_scene(args.out, args.side, args.cell, args.seed)
    print(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
