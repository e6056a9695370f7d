"""The options of `bita-caption` that caption rasters tile by tile onto a map."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from bita.commands import above, at_least, share
from bita.errors import UserError, no_file
from bita.files import user_path
from bita.scenes.layers import SUFFIXES
from bita.scenes.windows import EDGES, Edge

if TYPE_CHECKING:
    from bita.inference.captioner import Captioner
    from bita.scenes.captioning import Wanted, Written

LOG = logging.getLogger(__name__)
CROP = 256
EDGE: Edge = "shift"
ENDINGS = {suffix: kind for kind, suffix in SUFFIXES.items()} | {
    ".json": "geojson",
    ".geoparquet": "geoparquet",
}
"""What an output's name may end in, and the format that this asks for."""
_ASKING = (
    *("format", "before", "after", "top"),
    *("crop", "stride", "gsd", "edge", "bands", "crs", "min_valid"),
)
_EVERY = 0.5
"""Seconds."""


class Output(NamedTuple):
    """What is made of a raster, or of those of two dates.

    Attributes:
        rasters: one, or two.
        path: of the file that is written.
        kind: its format.
    """

    rasters: tuple[Path, ...]
    path: Path
    kind: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of scenes; any of them, or an output that is a map, makes a scene of what is captioned."""
    group = parser.add_argument_group(
        "scenes: rasters cut into tiles, captions as polygons (docs/scenes.md); each of these asks for one"
    )
    group.add_argument(
        "--format", choices=tuple(SUFFIXES), help="of the file of polygons (as --output ends; geojson)"
    )
    group.add_argument("--before", type=user_path, metavar="RASTER", help="with --after: what changed")
    group.add_argument("--after", type=user_path, metavar="RASTER", help="second date of --before")
    add_cut(group)
    group.add_argument("--top", type=at_least(1), metavar="N", help="only the N tiles that changed most")
    group.add_argument("--stac", action="store_true", help="write a STAC Item beside each output")


def add_cut(group: argparse._ArgumentGroup) -> None:
    """Add the options that say how a raster is read and cut into tiles; `wanted` takes them."""
    group.add_argument("--crop", type=at_least(1), metavar="PIXELS", help=f"side of a tile ({CROP})")
    group.add_argument("--stride", type=at_least(1), metavar="PIXELS", help="to the next tile (as --crop)")
    group.add_argument("--gsd", type=above(0), metavar="METRES", help="resample to so many a pixel")
    group.add_argument("--edge", choices=EDGES, help=f"tiles at the right and lower edge ({EDGE})")
    group.add_argument("--bands", type=_three, metavar="R,G,B", help="band numbers from 1 (1,2,3)")
    group.add_argument("--crs", metavar="NAME", help="of a raster without, or with a wrong one: EPSG:32633")
    group.add_argument("--min-valid", type=share, help="share of a tile that must have data (any)")


def wanted(args: argparse.Namespace, **others: Any) -> Wanted:
    """Return what parsed options of `add_cut` ask for; `others` are further fields."""
    from bita.scenes.captioning import Wanted

    return Wanted(
        crop=args.crop or CROP,
        stride=args.stride,
        gsd=args.gsd,
        edge=args.edge or EDGE,
        bands=args.bands,
        crs=args.crs,
        min_valid=args.min_valid or 0.0,
        **others,
    )


def is_wanted(args: argparse.Namespace) -> bool:
    """Whether parsed options ask for scenes."""
    named = args.output is not None and args.output.suffix.lower() in ENDINGS
    map_like = named and args.output.suffix.lower() not in (".csv", ".json")
    return map_like or args.stac or any(getattr(args, name) is not None for name in _ASKING)


def check(args: argparse.Namespace) -> list[Output]:
    """Return what is to be written of which rasters, before any model is loaded.

    Raises:
        UserError: options do not fit together, a raster is missing, or an output is there or cannot be.
    """
    changes = args.before is not None or args.after is not None
    if changes and (args.before is None or args.after is None):
        raise UserError("--before and --after: give both")
    if changes and args.images:
        raise UserError("--before and --after: name no other raster beside them")
    if not changes and not args.images:
        raise UserError("name a raster, or two by --before and --after")
    if args.top is not None and not changes:
        raise UserError("--top: is of tiles that changed; give --before and --after")
    jobs: list[tuple[Path, ...]] = (
        [(args.before, args.after)]
        if changes
        else [(path,) for argument in args.images for path in _rasters(argument)]
    )
    kind = format_of(args)
    outputs: list[Output] = []
    for rasters in jobs:
        for path in rasters:
            if not path.is_file():
                raise UserError(f"scene {path}: {no_file(path)}")
        name = f"{rasters[-1].stem}.{'changes' if changes else 'captions'}{SUFFIXES[kind]}"
        outputs.append(Output(rasters, _output(args, name, len(jobs)), kind))
    paths = [output.path for output in outputs]
    twice = [path for k, path in enumerate(paths) if path in paths[:k]]
    if twice:
        raise UserError(f"{twice[0]}: two scenes of that name; caption them one by one")
    return outputs


def format_of(args: argparse.Namespace) -> str:
    """Return the format that is written: of --format, or as --output ends.

    Raises:
        UserError: these two differ, or the ending is none of a format.
    """
    ending = "" if args.output is None or args.output.is_dir() else args.output.suffix.lower()
    if ending in ENDINGS:
        if args.format not in (None, ENDINGS[ending]):
            raise UserError(
                f"{args.output}: is named like {ENDINGS[ending]}, but --format is {args.format}; change one of them"
            )
        return ENDINGS[ending]
    if ending and args.format is None:
        raise UserError(
            f"{args.output}: its name must end in {', '.join(ENDINGS)}, which decides what is written"
        )
    return args.format or "geojson"


def _rasters(argument: str) -> list[Path]:
    """Return the files that an argument names: itself, or those of a folder, a pattern or a list."""
    from bita.inference.sources import find_images, names_several

    return find_images([argument]) if names_several(argument) else [user_path(argument)]


def _output(args: argparse.Namespace, name: str, scenes: int) -> Path:
    """Return where a scene's output goes: `--output` is its path, or the folder of several.

    Raises:
        UserError: it is there already, or has no folder.
    """
    from bita.scenes.captioning import journal_of

    given = args.output
    out = Path(name) if given is None else given / name if scenes > 1 or given.is_dir() else given
    if scenes > 1 and given is not None and not given.exists() and given.parent.is_dir():
        given.mkdir()
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}")
    if out.exists() and not journal_of(out).exists() and not args.overwrite:
        raise UserError(f"{out}: exists already; say --overwrite, or name another --output")
    return out


def run(
    args: argparse.Namespace, jobs: list[Output], captioner: Captioner, settings: str, **search: Any
) -> int:
    """Caption scenes; 0.

    Args:
        args: parsed options.
        jobs: what `check` returned.
        captioner: a trained model.
        settings: what the captions depend on besides, for the journal.
        search: what `Captioner.stream` takes.
    """
    from bita.scenes.captioning import caption_scene
    from bita.scenes.change import caption_changes

    asked = wanted(
        args,
        batch_size=args.batch_size,
        search=search,
        settings=f"{args.quantize}; {settings}",
        stac=args.stac,
        overwrite=args.overwrite,
    )
    for rasters, out, kind in jobs:
        with Shown(rasters[-1].name) as shown:
            if len(rasters) == 1:
                written = caption_scene(captioner, rasters[0], out, kind, asked, shown)
            else:
                written = caption_changes(captioner, rasters, out, kind, asked, shown, args.top)
        shown.end(written, dates=len(rasters))
        print(out, flush=True)
    return 0


class Shown:
    """How far a scene is, where someone looks, and a line at its end; on stderr.

    Args:
        name: of the scene.
    """

    def __init__(self, name: str) -> None:
        self.name, self.start, self.said = name, time.monotonic(), 0.0
        self.first: tuple[int, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the line, for what else is to be said."""
        if self.said:
            print(file=sys.stderr, flush=True)

    def __call__(self, done: int, total: int) -> None:
        """Say how many tiles are done, twice a second at most, and how long the rest takes at the speed till then."""
        now = time.monotonic()
        if self.first is None:
            self.first = done, now  # of a run that went on, the tiles before this are not its own
        before, start = self.first
        if sys.stderr.isatty() and now - self.said > _EVERY and done > before:
            self.said = now
            left = timedelta(seconds=round((now - start) / (done - before) * (total - done)))
            print(f"\r{self.name}: {done}/{total} tiles, {left} left  ", end="", file=sys.stderr, flush=True)

    def end(self, written: Written, dates: int = 1) -> None:
        """Say what was written, and how quickly."""
        seconds = time.monotonic() - self.start
        new = written.captioned - written.resumed
        said = [
            f"{written.captioned} tiles",
            f"{written.total - written.captioned} of {written.total} without data",
        ]
        if written.resumed:
            said.append(f"{written.resumed} of them done before")
        said.append(f"{seconds:.1f} s, {new / seconds:.1f} tiles/s")
        print(f"{self.name}: {', '.join(said)}", file=sys.stderr, flush=True)
        if not written.captioned:
            both = " at both dates (do they show the same place?)" if dates == 2 else ""
            LOG.warning("%s: no tile has data%s, so that %s is empty", self.name, both, written.path)


def _three(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    bands = tuple(int(part) for part in parts if part.strip().isdecimal())
    if len(bands) != len(parts) or len(bands) != 3 or min(bands) < 1:
        raise argparse.ArgumentTypeError(f"wanted three band numbers from 1, such as 4,3,2, not {text}")
    return bands
