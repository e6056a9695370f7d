"""STAC: an Item beside a file of captioned tiles, and an Item of the machine-learning extension for an exported model.

STAC 1.1 as pystac writes it; the model's Item follows MLM (https://stac-extensions.github.io/mlm).
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bita.errors import UserError
from bita.files import write_json

if TYPE_CHECKING:
    from shapely import MultiPolygon, Polygon

    from bita.processors.image import ImageProcessor
    from bita.scenes.rasters import Scene

MEDIA = {
    ".geojson": "application/geo+json",
    ".gpkg": "application/geopackage+sqlite3",
    ".parquet": "application/vnd.apache.parquet",
    ".csv": "text/csv",
}


def item_path(out: Path) -> Path:
    """Return where the Item of an output lies."""
    return out.with_name(f"{out.name}.stac.json")


def check_item(scene: Scene) -> None:
    """See that a scene has what an Item must say, before the work is done.

    Raises:
        UserError: it has no place on the earth, or no time.
    """
    if scene.where.lonlat is None:
        raise UserError(f"{scene.path}: a STAC Item needs a place on the earth; name its system with --crs")
    if scene.time is None:
        raise UserError(
            f"{scene.path}: a STAC Item needs the time when it was taken; write it into its tag TIFFTAG_DATETIME"
        )


def write_item(scene: Scene, out: Path, rasters: tuple[Path, ...], model: str) -> Path:
    """Write the Item of a file of tiles beside it.

    Args:
        scene: whose tiles they are; see `check_item`.
        out: the file.
        rasters: the scene's, or those of two dates.
        model: hash of the model's weights.
    """
    import pystac
    from pystac.extensions.projection import ProjectionExtension
    from shapely.geometry import mapping

    from bita.scenes.polygons import globe_outline
    from bita.scenes.windows import Tile

    place = globe_outline(Tile(0, 0, 0, *scene.size), scene.where)
    item = pystac.Item(
        id=out.stem,
        geometry=None if place is None else mapping(place),
        bbox=None if place is None else _box(place),
        datetime=datetime.fromisoformat(str(scene.time)),
        properties={"bita:model": model},
    )
    projection = ProjectionExtension.ext(item, add_if_missing=True)
    crs = scene.where.crs
    code = crs.to_epsg() if crs else None
    projection.apply(epsg=code, wkt2=None if code or crs is None else crs.to_wkt())
    item.add_asset("captions", pystac.Asset(out.name, media_type=MEDIA.get(out.suffix), roles=["data"]))
    names = ("scene",) if len(rasters) == 1 else ("before", "after")
    for name, path in zip(names, rasters, strict=True):
        href = Path(os.path.relpath(path.resolve(), out.parent.resolve())).as_posix()
        item.add_asset(name, pystac.Asset(href, roles=["source"]))
    write_json(item_path(out), item.to_dict(include_self_link=False))
    return item_path(out)


def _box(place: Polygon | MultiPolygon) -> list[float]:
    """Return west, south, east and north; of what crosses the 180th meridian, west is the larger longitude."""
    parts = sorted((part.bounds for part in getattr(place, "geoms", [place])), key=lambda box: -box[0])
    return [parts[0][0], min(p[1] for p in parts), parts[-1][2], max(p[3] for p in parts)]


def write_model_item(folder: Path) -> Path:
    """Write `model.stac.json` into an exported folder: what the model takes and gives, its size, its files.

    Args:
        folder: what `bita.export.export_folder` wrote.

    Raises:
        UserError: it is no such folder.
    """
    import pystac
    import torch
    from pystac.extensions.mlm import MLMExtension, TaskType

    from bita.build import build_model
    from bita.datasets.builders import processors_of
    from bita.export import config_of, meta_of

    cfg = config_of(folder)
    model = build_model(cfg.model)
    weights = list(model.state_dict().values())
    images = processors_of(cfg).eval_image
    item = pystac.Item(
        id=folder.resolve().name,
        geometry={"type": "Polygon", "coordinates": [_WORLD]},
        bbox=[-180, -90, 180, 90],
        datetime=datetime.fromtimestamp((folder / "meta.json").stat().st_mtime, UTC).replace(microsecond=0),
        properties={},
    )
    MLMExtension.ext(item, add_if_missing=True).apply(
        name=folder.resolve().name,
        architecture=f"BITA {cfg.model.arch}",
        tasks=[TaskType("image-captioning")],
        framework="PyTorch",
        framework_version=torch.__version__.partition("+")[0],
        memory_size=sum(tensor.numel() * tensor.element_size() for tensor in weights),
        total_parameters=sum(parameter.numel() for parameter in model.parameters()),
        pretrained=True,
        input=[_input(images)],
        output=[_output()],
    )
    for name in sorted(meta_of(cfg).files):
        asset = pystac.Asset(name, media_type="application/octet-stream", roles=["mlm:model"])
        asset.extra_fields["mlm:artifact_type"] = "safetensors"
        item.add_asset(name, asset)
    path = folder / "model.stac.json"
    write_json(path, item.to_dict(include_self_link=False))
    return path


_WORLD = [[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]


def _input(images: ImageProcessor) -> Any:
    """Return what the model takes: RGB, resized, normalised."""
    from pystac.extensions.mlm import InputStructure, ModelInput, ResizeType, ValueScaling, ValueScalingType
    from pystac.extensions.raster import DataType

    side = images.image_size
    found = ModelInput.create(
        name="RGB image",
        bands=["red", "green", "blue"],
        input=InputStructure.create(
            [-1, 3, side, side], ["batch", "channel", "height", "width"], DataType.FLOAT32
        ),
        resize_type=ResizeType.INTERPOLATION_CUBIC,
    )
    found.properties["value_scaling"] = [  # one a band, which pystac's own argument does not take
        ValueScaling.create(ValueScalingType.Z_SCORE, mean=255 * mean, stddev=255 * std).to_dict()
        for mean, std in zip(images.mean.flatten().tolist(), images.std.flatten().tolist(), strict=True)
    ]
    return found


def _output() -> Any:
    """Return what the model gives: tokens of a caption."""
    from pystac.extensions.mlm import ModelOutput, ResultStructure, TaskType
    from pystac.extensions.raster import DataType

    return ModelOutput.create(
        name="caption",
        tasks=[TaskType("image-captioning")],
        result=ResultStructure.create([-1, -1], ["batch", "token"], DataType.INT64),
        description="token numbers; decoded by the tokenizer in the folder",
    )
