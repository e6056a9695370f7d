"""Caption a drawn scene by the command, and check what the output must be: places, names, memory, speed, kills.

    python scripts/checks/scene_check.py --checkpoint output/quickstart/caption --out output/scene_check

With the defaults: a scene of 12,000 × 12,000 pixels (scripts/data/make_scene.py; made once), tiles of 256,
five kills. In small, in a minute: --side 1024 --crop 128 --kills 2. Exit code 0 only if every polygon lies on
its tile (by pyproj and the raster's own transform) and the killed run's file equals the uninterrupted one
byte for byte.

The other figures are printed, and written by --json: memory above the model's (peak of the command less the
peak of a process that captions two batches of images that it has), objects that are named by the tile that
holds them, tiles/s of the command by its own line and of the model alone on the same tiles in memory.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bita.errors import at_least, command_line, program
from bita.files import user_path, write_json

ROOT = Path(__file__).resolve().parents[2]
BANDS = "3,2,1"
BATCH = 16
OFF = 0.5
"""Pixels that a polygon may lie beside its tile."""


def command(args: Any, scene: Path, out: Path) -> list[str]:
    """Return the command that captions the scene."""
    line = [sys.executable, str(ROOT / "caption.py"), "--checkpoint", args.checkpoint, str(scene)]
    return [*line, "--crop", str(args.crop), "--bands", BANDS, "--output", str(out)]


def measured(line: list[str]) -> tuple[str, float]:
    """Run a command; what it said on stderr, and the most memory that it held, in MB."""
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"scene check: {' '.join(line)}\n{said}")
    return said, usage.ru_maxrss / 1024


def alone(args: Any, scene: Path, tiles: int) -> None:
    """Print the tiles/s of the model on tiles that are in memory, without any: on two batches of empty images."""
    from itertools import islice

    from PIL import Image

    import bita

    captioner = bita.load(args.checkpoint)
    images = [] if tiles else 2 * BATCH * [Image.new("RGB", (args.crop, args.crop))]
    if tiles:
        from bita.scenes.captioning import Wanted

        wanted = Wanted(crop=args.crop, bands=(3, 2, 1))
        with wanted.open(scene) as raster:
            views = islice(wanted.tiling(raster).views(raster, 0, 0.0), tiles)
            images = [Image.fromarray(view.pixels) for view in views]
    list(captioner.stream(images[:BATCH], batch_size=BATCH, num_captions=1))
    start = time.monotonic()
    list(captioner.stream(images, batch_size=BATCH, num_captions=1))
    print(len(images) / (time.monotonic() - start), file=sys.stderr)


def misplaced(features: list[dict[str, Any]], scene: Path) -> int:
    """Count polygons that do not lie on their tiles: corners brought back by pyproj and the raster's transform."""
    import rasterio
    from pyproj import Transformer

    with rasterio.open(scene) as file:
        back, crs = ~file.transform, file.crs.to_wkt()
    transformer = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    wrong = 0
    for feature in features:
        row = feature["properties"]
        (ring,) = feature["geometry"]["coordinates"]
        found = [back @ transformer.transform(*place) for place in ring]
        sides = [(row["column"], row["column"] + row["width"]), (row["row"], row["row"] + row["height"])]
        corners = [(x, y) for x in sides[0] for y in sides[1]]
        near = all(min(abs(x - a) + abs(y - b) for x, y in found) < OFF for a, b in corners)
        wrong += not near or any(min(abs(x - side) for side in sides[0]) > OFF for x, _ in found)
    return wrong


def named(features: list[dict[str, Any]], objects: list[dict[str, Any]]) -> float:
    """Return the share of objects that the caption of the tile that holds them names."""
    from bita.datasets.synthetic import facts_in_caption

    hits = 0
    for item in objects:
        holds = (
            row
            for row in (feature["properties"] for feature in features)
            if row["column"] <= item["column"] < row["column"] + row["width"]
            and row["row"] <= item["row"] < row["row"] + row["height"]
        )
        tile = next(holds, None)
        hits += tile is not None and facts_in_caption(tile["caption"]).kind == item["kind"]
    return hits / len(objects)


def killed(args: Any, scene: Path, out: Path, tiles: int) -> int:
    """Caption the scene under `--kills` kills, each after a share of the tiles, then to the end; how many hit."""
    journal, dice = out.with_name(f"{out.name}.journal"), random.Random(0)

    def batches() -> int:
        return journal.read_bytes().count(b"\n") - 1 if journal.exists() else -1

    for kill in range(args.kills):
        process = subprocess.Popen(
            command(args, scene, out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wanted = (kill + 1) * tiles // BATCH // (args.kills + 1)
        while process.poll() is None:
            if batches() >= wanted:
                time.sleep(dice.uniform(0, 0.02))
                process.kill()
            time.sleep(0.02)
        process.wait()
        if out.exists():  # it was done before the kill
            return kill
        print(f"kill {kill + 1}: {batches()} batches")
    measured(command(args, scene, out))
    return int(args.kills)


def check(args: Any) -> dict[str, Any]:
    """Do all; the figures."""
    scene = args.out / f"scene_{args.side}.tif"
    args.out.mkdir(parents=True, exist_ok=True)
    if not scene.exists():
        make = [str(ROOT / "scripts/data/make_scene.py"), str(scene), "--side", str(args.side)]
        measured([sys.executable, *make, "--cell", str(args.crop)])
    plain, other = args.out / "plain.geojson", args.out / "killed.geojson"
    for path in (plain, other):
        for old in (path, path.with_name(f"{path.name}.journal")):
            old.unlink(missing_ok=True)
    said, peak = measured(command(args, scene, plain))
    features = json.loads(plain.read_text(encoding="utf-8"))["features"]
    own = [sys.executable, __file__, "--checkpoint", args.checkpoint, "--out", str(args.out)]
    own += ["--side", str(args.side), "--crop", str(args.crop), "--alone"]
    _, model_peak = measured([*own, "0"])
    speed, _ = measured([*own, str(len(features))])
    kills = killed(args, scene, other, len(features))
    objects = json.loads(scene.with_suffix(".json").read_text(encoding="utf-8"))
    rate = float(said.strip().splitlines()[-1].rpartition(", ")[2].split()[0])
    alone_rate = float(speed.strip().splitlines()[-1])
    return {
        "tiles": len(features),
        "misplaced": misplaced(features, scene),
        "objects named": round(named(features, objects), 3),
        "MB above the model": round(peak - model_peak, 1),
        "tiles/s": rate,
        "tiles/s of the model alone": round(alone_rate, 1),
        "share of the model's speed": round(rate / alone_rate, 3),
        "kills": kills,
        "equal": plain.read_bytes() == other.read_bytes(),
    }


@program
def main() -> int:
    """Check, print; the exit code."""
    parser = command_line(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a run that captions the synthetic scenes")
    parser.add_argument("--out", type=user_path, required=True, help="folder for the scene and the outputs")
    parser.add_argument("--side", type=at_least(256), default=12_000)
    parser.add_argument("--crop", type=at_least(64), default=256)
    parser.add_argument("--kills", type=at_least(1), default=5)
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write the figures here")
    parser.add_argument("--alone", type=at_least(0), metavar="TILES", help="only the model, on so many tiles")
    args = parser.parse_args()
    if args.alone is not None:
        alone(args, args.out / f"scene_{args.side}.tif", args.alone)
        return 0
    found = check(args)
    for name, value in found.items():
        print(f"{name}: {value}")
    if args.json is not None:
        write_json(args.json, found)
    return 0 if found["equal"] and not found["misplaced"] else 1


if __name__ == "__main__":
    sys.exit(main())
