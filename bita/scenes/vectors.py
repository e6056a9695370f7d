"""Tiles as polygons in a file that a geographic information system opens; written whole or not at all, row by row.

geojson      RFC 7946: longitude and latitude, right-handed, cut at the 180th meridian
gpkg         GeoPackage, in the scene's reference system, with a style for QGIS
geoparquet   GeoParquet 1.1, in the scene's reference system
csv          the polygon as WKT in the scene's reference system, which stands beside it
"""

from __future__ import annotations

import csv
import errno
import json
import sqlite3
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from bita.errors import UserError, first_line
from bita.files import replacing, sync
from bita.scenes.georeference import Georeference
from bita.scenes.layers import PLACE, Kind, Layer, Row, tile_of
from bita.scenes.polygons import globe_outlines, outlines
from bita.scenes.rasters import Scene
from bita.scenes.style import qml
from bita.scenes.tiling import batches

_CHUNK = 4096
"""Rows that are in memory at a time."""
_NO_CRS = (
    "has no coordinate reference system that leads to longitude and latitude; name it with --crs, or take "
    "another --format"
)


@dataclass(frozen=True)
class Tiles:
    """What is written: rows of tiles, where their scene lies, and the moment that a GeoPackage says it is of."""

    layer: Layer
    rows: Iterable[Row]
    where: Georeference
    moment: str

    @property
    def crs(self) -> str | None:
        """The scene's reference system, by its number where it has one, else as WKT."""
        crs = self.where.crs
        if crs is None:
            return None
        authority = crs.to_authority(min_confidence=100)
        return ":".join(authority) if authority else crs.to_wkt()


def check_format(name: str, scene: Scene) -> None:
    """See that a scene can be written in a format before the work is done.

    Raises:
        UserError: GeoJSON of a scene without a way to longitude and latitude.
    """
    if name == "geojson" and scene.where.lonlat is None:
        raise UserError(f"{scene.path}: {_NO_CRS}")


def write_tiles(path: Path, name: str, tiles: Tiles) -> int:
    """Write a file in one of the formats, in the place of what is there; how many tiles it holds.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    count = 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in tiles.rows:
            count += 1
            yield row

    with replacing(path) as temporary:
        WRITERS[name](temporary, replace(tiles, rows=counted()))
        sync(temporary)
    sync(path.parent)
    return count


def _geojson(path: Path, tiles: Tiles) -> None:
    from shapely.geometry import mapping

    start = "\n"
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for rows in batches(iter(tiles.rows), _CHUNK):
            places = globe_outlines([tile_of(row) for row in rows], tiles.where)
            for row, place in zip(rows, places, strict=True):
                feature = {
                    "type": "Feature",
                    "id": row["tile"],
                    "geometry": None if place is None else mapping(place),
                    "properties": {name: row.get(name) for name in tiles.layer.columns},
                }
                file.write(start + json.dumps(feature, ensure_ascii=False))
                start = ",\n"
        file.write("\n]}\n")


def _csv(path: Path, tiles: Tiles) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*tiles.layer.columns, "crs", "geometry"])
        for rows in batches(iter(tiles.rows), _CHUNK):
            places = outlines([tile_of(row) for row in rows], tiles.where)
            for row, place in zip(rows, places, strict=True):
                writer.writerow([*_plain(row, tiles.layer), tiles.crs, place.wkt])


def _plain(row: Row, layer: Layer) -> Iterator[Any]:
    """Values of a row, lists as JSON."""
    for name, kind in layer.columns.items():
        value = row.get(name)
        yield json.dumps(value, ensure_ascii=False) if kind == "texts" and value is not None else value


def _geoparquet(path: Path, tiles: Tiles) -> None:
    import pyarrow.parquet as pq

    crs = tiles.where.crs
    column = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": crs.to_json_dict() if crs else None}
    head = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    schema = _schema(tiles.layer, lists=True).with_metadata({"geo": json.dumps(head)})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in _tables(tiles, schema):
            writer.write_table(table)


def _geopackage(path: Path, tiles: Tiles) -> None:
    import pyogrio

    schema = _schema(tiles.layer, lists=False)
    written = 0
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": tiles.moment})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the temporary name, and of a scene without reference system
            for k, table in enumerate(_tables(tiles, schema)):
                pyogrio.write_arrow(
                    table,
                    path,
                    layer=tiles.layer.name,
                    driver="GPKG",
                    geometry_name="geometry",
                    geometry_type="Polygon",
                    crs=tiles.crs,
                    append=k > 0,
                )
                written += len(table)
            _add_style(path, tiles)
            found = pyogrio.read_info(path, layer=tiles.layer.name, force_feature_count=True)["features"]
    except (
        pyogrio.errors.DataSourceError,
        pyogrio.errors.DataLayerError,
        sqlite3.Error,
        RuntimeError,
    ) as error:
        raise OSError(errno.EIO, f"cannot be written ({first_line(error)})", str(path)) from error
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
    if found != written:
        raise OSError(errno.ENOSPC, f"holds {found} of {written} tiles; is the disk full?", str(path))


def _add_style(path: Path, tiles: Tiles) -> None:
    """Put a style into a GeoPackage, in the table where QGIS looks for the one that it opens a layer with."""
    name = tiles.layer.name
    with sqlite3.connect(path) as base:
        base.execute(
            "CREATE TABLE layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), "
            "f_table_schema TEXT(256), f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), "
            "styleQML TEXT, styleSLD TEXT, useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), "
            "update_time DATETIME)"
        )
        base.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, "
            "styleQML, styleSLD, useAsDefault, description, owner, ui, update_time) "
            "SELECT '', '', table_name, column_name, ?, ?, '', 1, ?, '', NULL, ? FROM gpkg_geometry_columns",
            (name, qml(tiles.layer), f"by {tiles.layer.shade}", tiles.moment),
        )
        base.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, description, last_change, srs_id) "
            "VALUES ('layer_styles', 'attributes', 'layer_styles', '', ?, 0)",
            (tiles.moment,),
        )
    base.close()


def _schema(layer: Layer, *, lists: bool) -> Any:
    """Return the columns as Arrow has them, the polygon as WKB."""
    import pyarrow as pa

    kinds = {
        "int": pa.int32(),
        "float": pa.float64(),
        "text": pa.string(),
        "texts": pa.list_(pa.string()) if lists else pa.string(),
        "time": pa.timestamp("ms", tz="UTC"),
    }
    fields = [pa.field(name, kinds[kind], name not in PLACE) for name, kind in layer.columns.items()]
    extension = {"ARROW:extension:name": "geoarrow.wkb" if lists else "ogc.wkb"}
    return pa.schema([*fields, pa.field("geometry", pa.binary(), metadata=extension)])


def _tables(tiles: Tiles, schema: Any) -> Iterator[Any]:
    """Tables of `_CHUNK` rows, at least one."""
    import pyarrow as pa

    rows = iter(tiles.rows)
    part = list(islice(rows, _CHUNK))
    while True:
        columns = {
            name: _values(kind, [row.get(name) for row in part], schema.field(name).type)
            for name, kind in tiles.layer.columns.items()
        }
        places = outlines([tile_of(row) for row in part], tiles.where)
        columns["geometry"] = [place.wkb for place in places]
        yield pa.Table.from_pydict(columns, schema=schema)
        part = list(islice(rows, _CHUNK))
        if not part:
            return


def _values(kind: Kind, values: list[Any], wanted: Any) -> list[Any]:
    """Return a column as Arrow takes it: times as such, lists as JSON where the format has none."""
    if kind == "time":
        return [None if value is None else datetime.fromisoformat(value) for value in values]
    if kind == "texts" and wanted == "string":
        return [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return values


WRITERS = {"geojson": _geojson, "gpkg": _geopackage, "geoparquet": _geoparquet, "csv": _csv}
"""Name of a format, see `layers.SUFFIXES` → what writes one."""
