"""Caption a drawn scene by the command, and check what the output must be: places, names, memory, speed, kills.

    python scripts/checks/scene_check.py --checkpoint output/quickstart/caption --out output/scene_check
    python scripts/checks/scene_check.py --out output/scene_check --only-speed     # of the model in the package

With the defaults: a scene of 12,000 × 12,000 pixels (scripts/data/make_scene.py; made once), tiles of 256,
five kills. In small, in a minute: --side 1024 --crop 128 --kills 2 --rounds 1. Exit code 0 only if every
polygon lies on its tile (by pyproj and the raster's own transform) and the killed run's file equals the
uninterrupted one byte for byte; --only-speed leaves these out.

The other figures are printed, and written by --json and --markdown: memory above the model's (peak of the
command less the peak of a process that captions two batches of images that it has), objects that are named
by the tile that holds them, and the speed. For that, one process captions the scene from its file to its
output and the same tiles as the model takes them, resized and in memory, by turns; captions are asserted to
be equal first. CPU times hold on a busy machine too; those by the clock do not.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bita.commands import at_least, command_line, program
from bita.errors import UserError
from bita.files import user_path, write_json
from bita.machine import start_program
from bita.packages import BOX

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from bita.processors.rgb import ImageOpener

ROOT = Path(__file__).resolve().parents[2]
BANDS = (3, 2, 1)
BATCH = 16
OFF = 0.5
"""Pixels that a polygon may lie beside its tile."""
WANTED = {
    "polygons beside their tile": "0",
    "objects named": "0.8 at least",
    "MB above the model": "600 at most",
    "kills": "5",
    "equal to the uninterrupted output": "yes",
    "share of the model's speed": "0.9 at least",
}


def command(args: Any, scene: Path, out: Path) -> list[str]:
    """Return the command that captions the scene."""
    line = [sys.executable, str(ROOT / "caption.py"), "--checkpoint", str(args.checkpoint), str(scene)]
    bands = ",".join(map(str, BANDS))
    return [*line, "--crop", str(args.crop), "--bands", bands, "--output", str(out)]


def itself(args: Any, *more: str) -> list[str]:
    """Return this script's line for a process of its own."""
    line = [sys.executable, __file__, "--checkpoint", str(args.checkpoint), "--out", str(args.out)]
    line += ["--side", str(args.side), "--crop", str(args.crop), "--rounds", str(args.rounds)]
    return [*line, *more]


def measured(line: list[str]) -> tuple[str, float]:
    """Run a command; its standard output, and the most memory that it held, in MB."""
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise UserError(f"{' '.join(line)}: ended with {os.waitstatus_to_exitcode(status)}")
    return said, usage.ru_maxrss / 1024


def without_scene(args: Any) -> None:
    """Caption two batches of empty images: what a process needs for the model."""
    from PIL import Image

    import bita

    captioner = bita.load(args.checkpoint)
    images = 2 * BATCH * [Image.new("RGB", (args.crop, args.crop))]
    list(captioner.stream(images, batch_size=BATCH, num_captions=1))


class Time(NamedTuple):
    """Seconds of a run, by the clock and of the CPU."""

    clock: float
    cpu: float

    @classmethod
    def of(cls, run: Callable[[], Any]) -> Time:
        """Run it."""
        clock, cpu = time.perf_counter(), time.process_time()
        run()
        return cls(time.perf_counter() - clock, time.process_time() - cpu)


@dataclass(frozen=True)
class InMemory:
    """A tile of the size that the model takes, as `Captioner.stream` opens it: what is left is the model's own time."""

    image: Image.Image

    def open_with(self, opener: ImageOpener) -> Image.Image:
        """See `bita.inference.views.Openable`."""
        return self.image


def speed(args: Any, scene: Path) -> dict[str, Any]:
    """Caption the scene, and its tiles in memory by the model alone, by turns."""
    start_program()
    from PIL import Image

    import bita
    from bita.inference.views import View, seen_ahead
    from bita.scenes.captioning import Wanted, caption_scene

    captioner, out = bita.load(args.checkpoint), args.out / "speed.geojson"
    wanted = Wanted(crop=args.crop, bands=BANDS, search={"num_captions": 1})

    def read() -> list[Tensor]:
        with wanted.open(scene) as raster:
            views = wanted.tiling(raster).views(raster, 0, wanted.min_valid)
            found = seen_ahead(views, [View(captioner.processors)], BATCH, captioner.model.device)
            return [tile[0] for tile in found if not isinstance(tile, UserError)]

    tiles = [InMemory(Image.fromarray(tile.numpy())) for tile in read()]

    def program() -> None:
        caption_scene(captioner, scene, out, "geojson", wanted, lambda done, total: None)

    def alone() -> list[str]:
        return list(map(str, captioner.stream(tiles, batch_size=BATCH, **wanted.search)))

    program()
    said = [row["properties"]["caption"] for row in json.loads(out.read_text(encoding="utf-8"))["features"]]
    if said != alone():
        raise UserError("speed: the captions of the scene and of its tiles in memory differ")
    rounds = [Round(Time.of(program), Time.of(alone), Time.of(read)) for _ in range(args.rounds)]
    out.unlink()
    return figures(rounds, len(tiles))


class Round(NamedTuple):
    """One measurement: from the scene's file to the output, the model alone, the reading alone."""

    program: Time
    model: Time
    reading: Time


def figures(rounds: list[Round], tiles: int) -> dict[str, Any]:
    """Return the medians of the rounds, a tile."""
    import torch

    def median(values: Iterable[float]) -> float:
        return round(statistics.median(values), 3)

    whole, model, reading = zip(*rounds, strict=True)
    shares = [one.model.clock / one.program.clock for one in rounds]
    return {
        "threads": torch.get_num_threads(),
        "tiles/s": median(tiles / one.clock for one in whole),
        "tiles/s of the model alone": median(tiles / one.clock for one in model),
        "share of the model's speed": median(shares),
        "the least, and the highest": [round(min(shares), 3), round(max(shares), 3)],
        "ms of CPU a tile, all": median(1000 * one.cpu / tiles for one in whole),
        "ms of CPU a tile, the model": median(1000 * one.cpu / tiles for one in model),
        "ms of CPU a tile, reading and resizing": median(1000 * one.cpu / tiles for one in reading),
    }


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
    """Return the share of objects that the caption of the first tile that holds them names."""
    import numpy as np

    from bita.datasets.synthetic import facts_in_caption

    rows = [feature["properties"] for feature in features]
    left, top, width, height = (
        np.array([row[name] for row in rows]) for name in ("column", "row", "width", "height")
    )
    hits = 0
    for item in objects:
        x, y = item["column"], item["row"]
        holds = np.flatnonzero((left <= x) & (x < left + width) & (top <= y) & (y < top + height))
        hits += bool(len(holds)) and facts_in_caption(rows[holds[0]]["caption"]).kind == item["kind"]
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
        print(f"kill {kill + 1}: {batches()} batches", file=sys.stderr)
    measured(command(args, scene, out))
    return int(args.kills)


def check(args: Any) -> dict[str, Any]:
    """Do all; the figures."""
    scene = args.out / f"scene_{args.side}_{args.crop}.tif"
    args.out.mkdir(parents=True, exist_ok=True)
    if not scene.exists():
        make = [str(ROOT / "scripts/data/make_scene.py"), str(scene), "--side", str(args.side)]
        measured([sys.executable, *make, "--cell", str(args.crop)])
    plain, other = args.out / "plain.geojson", args.out / "killed.geojson"
    for path in (plain, other, args.out / "speed.geojson"):
        for old in (path, path.with_name(f"{path.name}.journal")):
            old.unlink(missing_ok=True)
    _, peak = measured(command(args, scene, plain))
    features = json.loads(plain.read_text(encoding="utf-8"))["features"]
    _, model_peak = measured(itself(args, "--part", "model"))
    said, _ = measured(itself(args, "--part", "speed"))
    found: dict[str, Any] = {"tiles": len(features), "MB above the model": round(peak - model_peak)}
    found |= json.loads(said)
    if args.only_speed:
        return found
    objects = json.loads(scene.with_suffix(".json").read_text(encoding="utf-8"))
    kills = killed(args, scene, other, len(features))
    return found | {
        "polygons beside their tile": misplaced(features, scene),
        "objects": len(objects),
        "objects named": round(named(features, objects), 3),
        "kills": kills,
        "equal to the uninterrupted output": plain.read_bytes() == other.read_bytes(),
    }


def table(name: str, found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""

    def cell(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return " to ".join(map(str, value)) if isinstance(value, list) else f"{value:,}"

    lines = [f"| {key} | {cell(value)} | {WANTED.get(key, '')} |" for key, value in found.items()]
    return "\n".join([f"| {name} | measured | wanted |", "|---|---|---|", *lines, ""])


@program
def main() -> int:
    """Check, print; the exit code."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--checkpoint", default=BOX, help="a run that captions the synthetic scenes (that of the package)"
    )
    parser.add_argument("--out", type=user_path, required=True, help="folder for the scene and the outputs")
    parser.add_argument("--side", type=at_least(256), default=12_000, help="of the scene (%(default)s)")
    parser.add_argument("--crop", type=at_least(64), default=256, help="of a tile (%(default)s)")
    parser.add_argument("--kills", type=at_least(1), default=5)
    parser.add_argument("--rounds", type=at_least(1), default=3, help="of measuring the speed (%(default)s)")
    parser.add_argument("--only-speed", action="store_true", help="and memory: no names, no kills")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write the figures here")
    parser.add_argument("--markdown", type=user_path, metavar="FILE", help="write them here as a table")
    parser.add_argument("--name", default="a scene", help="what the table is called")
    parser.add_argument("--part", choices=("model", "speed"), help="only what a process of its own does")
    args = parser.parse_args()
    if args.part == "model":
        without_scene(args)
        return 0
    if args.part == "speed":
        print(json.dumps(speed(args, args.out / f"scene_{args.side}_{args.crop}.tif")))
        return 0
    found = check(args)
    print(table(args.name, found))
    if args.json is not None:
        write_json(args.json, found)
    if args.markdown is not None:
        args.markdown.write_text(table(args.name, found), encoding="utf-8")
    wrong = found.get("polygons beside their tile", 0) or not found.get(
        "equal to the uninterrupted output", True
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
