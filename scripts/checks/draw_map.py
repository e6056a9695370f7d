"""Let QGIS draw a GeoPackage of captioned tiles, by the style that is in it, to be looked at.

    python scripts/checks/draw_map.py scene.captions.gpkg map.png --scene scene.tif --bands 3,2,1

It needs QGIS's own Python library (Debian's package python3-qgis), and says in a line that it is not there. Below
the tiles lies the scene, if it is named. Exit code 1 if QGIS finds no style or draws nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from bita.commands import at_least, command_line, program
from bita.errors import UserError
from bita.files import user_path

DEBIAN = "/usr/lib/python3/dist-packages"
"""Where its package lies, which an environment of its own does not see."""


def layers_of(path: Path) -> list[Any]:
    """Open the tables of tiles as QGIS does when a file is dropped on it.

    Raises:
        UserError: it opens none, or takes no style from the file.
    """
    from qgis.core import QgsProviderRegistry, QgsVectorLayer

    tables = QgsProviderRegistry.instance().querySublayers(str(path))
    layers = [QgsVectorLayer(table.uri(), table.name(), "ogr") for table in tables]
    found = [layer for layer in layers if layer.isValid() and layer.isSpatial()]
    if not found:
        raise UserError(f"{path}: QGIS opens no layer of it")
    for layer in found:
        if layer.renderer().type() != "RuleRenderer" or not layer.labelsEnabled():
            raise UserError(f"{path}: QGIS takes no style for {layer.name()} from it")
    return found


def raster_of(path: Path, bands: tuple[int, ...]) -> Any:
    """Open a scene, three bands of it stretched.

    Raises:
        UserError: QGIS does not open it.
    """
    from qgis.core import (
        QgsContrastEnhancement,
        QgsMultiBandColorRenderer,
        QgsRasterLayer,
        QgsRasterMinMaxOrigin,
    )

    layer = QgsRasterLayer(str(path), path.name)
    if not layer.isValid():
        raise UserError(f"{path}: QGIS does not open it")
    layer.setRenderer(QgsMultiBandColorRenderer(layer.dataProvider(), *bands))
    layer.setContrastEnhancement(
        QgsContrastEnhancement.StretchToMinimumMaximum, QgsRasterMinMaxOrigin.CumulativeCut
    )
    return layer


def draw(layers: list[Any], width: int) -> Any:
    """Draw layers, the first on top, in the first's reference system and as far as it reaches."""
    from qgis.core import QgsMapRendererSequentialJob, QgsMapSettings
    from qgis.PyQt.QtCore import QSize

    extent = layers[0].extent()
    extent.scale(1.02)
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(layers[0].crs())
    settings.setExtent(extent)
    settings.setOutputSize(QSize(width, round(width * extent.height() / extent.width())))
    job = QgsMapRendererSequentialJob(settings)
    job.start()
    job.waitForFinished()
    if job.errors():
        raise UserError("; ".join(error.message for error in job.errors()))
    print(f"1:{settings.scale():,.0f}")
    return job.renderedImage()


def _three(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def run(args: argparse.Namespace) -> None:
    """Draw the map that a command line asks for."""
    from qgis.core import QgsApplication

    application = QgsApplication([], False)
    application.initQgis()
    try:
        layers = layers_of(args.gpkg)
        if args.scene:
            layers.append(raster_of(args.scene, args.bands))
        if not draw(layers, args.width).save(str(args.out), "PNG"):
            raise UserError(f"{args.out}: cannot be written")
    finally:
        layers = []  # they must be gone before QGIS itself is
        application.exitQgis()


@program
def main() -> int:
    """Draw; 0, or the exit code of the mistake."""
    parser = command_line(__doc__)
    parser.add_argument("gpkg", type=user_path, help="what caption.py wrote by --format gpkg")
    parser.add_argument("out", type=user_path, help="PNG to make")
    parser.add_argument("--scene", type=user_path, help="raster to be drawn below")
    parser.add_argument("--bands", type=_three, default=(1, 2, 3), metavar="R,G,B", help="of it (1,2,3)")
    parser.add_argument("--width", type=at_least(16), default=1000, help="in pixels (%(default)s)")
    args = parser.parse_args()
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    sys.path.append(DEBIAN)
    try:
        import qgis.core  # noqa: F401
    except ImportError:
        print("skipped: there is no QGIS for this Python (Debian: python3-qgis)")
        return 0
    run(args)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
