"""`bita-caption`: captions of images, or of the tiles of scenes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from bita.checkpoint import start_with
from bita.commands import above, at_least, command_line, program
from bita.errors import ConfigError
from bita.files import user_path
from bita.packages import BOX

if TYPE_CHECKING:
    from bita.models.language.generation import GenerationSettings

CAPTION = """Caption images with a trained model: files, folders, patterns, or - for a list on standard input.

bita-caption image.jpg folder 'scenes/**/*.tif' > captions.txt
bita-caption --checkpoint output/quickstart/caption folder --output captions.csv
bita-caption --checkpoint output/quickstart/caption scene.tif --crop 256 --format gpkg

Of one file its caption is printed; of several a line each: name, tab, caption. With --output each line is a record; a
second start of the same command leaves out images that are in the file with the same content. An image that does not
open is told, and the others go on.

Exit code: 0, every image has a caption; 1, some do not open, or nothing could be done; 2, a wrong argument.

A checkout has it as caption.py."""
CHANGES = (
    *("num_beams", "num_captions", "use_nucleus_sampling", "top_p", "temperature", "seed", "prompt"),
    *("choose_by", "views", "stage1"),
)
"""Options that change what is written from what the run itself would write."""


@program
def caption(arguments: Sequence[str] | None = None) -> int:
    """The command `bita-caption`; its exit code."""
    from bita.scenes import command as scenes

    parser = caption_line()
    args = parser.parse_args(arguments)
    if not args.images and not scenes.is_wanted(args):
        parser.error("name an image, or a folder of them")
    rasters = scenes.check(args) if scenes.is_wanted(args) else []
    from bita.inference.outputs import RecordFile, format_of
    from bita.inference.sources import find_images, names_several

    if args.output is not None and not rasters:
        format_of(args.output)
    images = [] if rasters else find_images(args.images)
    start_with(args.checkpoint)
    from bita.inference.captioner import Captioner
    from bita.inference.jobs import print_captions, write_captions

    given = {name: value for name, value in vars(args).items() if name in CHANGES and value is not None}
    settings = ", ".join(f"{name}={value!r}" for name, value in given.items())
    stage1 = given.pop("stage1", None)
    given.setdefault("num_captions", 1)
    captioner = Captioner.load(args.checkpoint, args.device, args.quantize, stage1, given.pop("prompt", None))
    _check_search(given, captioner.settings)
    if rasters:
        return scenes.run(args, rasters, captioner, settings, **given)
    if args.output is None:
        named = len(args.images) > 1 or names_several(args.images[0])
        failed = print_captions(captioner, images, named=named, batch_size=args.batch_size, **given)
        return int(failed > 0)
    images = list(dict.fromkeys(images))  # a record each, however often it is named
    with RecordFile(args.output, captioner.hash, settings, args.overwrite) as out:
        failed = write_captions(captioner, images, out, batch_size=args.batch_size, **given)
    if failed:
        count = (
            f"{failed} of {len(images)} images have no caption"
            if len(images) > 1
            else "the image has no caption"
        )
        print(f"error: {count}; {args.output} says why", file=sys.stderr)
    return int(failed > 0)


def _check_search(given: dict[str, Any], settings: GenerationSettings) -> None:
    """Raise ConfigError where an option of the search would change nothing beside the others and the run's own."""
    drawn = given.get("use_nucleus_sampling", settings.use_nucleus_sampling)
    for name in () if drawn else ("top_p", "temperature", "seed"):
        if name in given:
            raise ConfigError(f"--{name.replace('_', '-')}: is of captions that are drawn; add --nucleus")
    found = given["num_captions"] if drawn else given.get("num_beams", settings.num_beams)
    if given.get("choose_by") == "consensus" and found == 1:
        more = "--num-captions" if drawn else "--beams"
        raise ConfigError(f"--choose-by consensus: one caption leaves no choice; set {more} above 1")


def caption_line() -> argparse.ArgumentParser:
    """Return the parser of its arguments."""
    from bita.config.run import MOST_VIEWS, Choice
    from bita.scenes.command import add_options as add_scenes

    parser = command_line(CAPTION)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="a file, a folder, a pattern, or -")
    parser.add_argument(
        "--checkpoint",
        default=BOX,
        help="a run's folder, a checkpoint in it, or an export (default: what the package brings)",
    )
    parser.add_argument(
        "--output",
        type=user_path,
        metavar="FILE",
        help="records instead of lines: FILE.csv, FILE.jsonl or FILE.txt",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="begin FILE anew, at each start: leave it out to go on (a scene's FILE is replaced by the whole new one)",
    )
    parser.add_argument("--batch-size", type=at_least(1), default=16, help="images encoded at a time (16)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--quantize", default="none", choices=("none", "int8", "int4"))
    parser.add_argument(
        "--stage1", metavar="RUN", help="stage-1 run for image-text scores (default: its own)"
    )
    add_scenes(parser)
    search = parser.add_argument_group("search (default: as in the run)")
    search.add_argument("--beams", dest="num_beams", type=at_least(1), help="of the search")
    search.add_argument("--num-captions", type=at_least(1), help="captions an image, tabs between them (1)")
    search.add_argument(
        "--choose-by", choices=get_args(Choice), help="the likeliest, or most like the others"
    )
    search.add_argument(
        "--views", type=at_least(1, MOST_VIEWS), help="turned and mirrored ones, of which the mean is read"
    )
    search.add_argument("--prompt", help="what captions begin with, and do not repeat")
    search.add_argument(
        "--nucleus", dest="use_nucleus_sampling", action="store_true", default=None, help="draw captions"
    )
    search.add_argument("--top-p", type=above(0, 1), help="share of the probability that is drawn from")
    search.add_argument("--temperature", type=above(0), help="above 1 draws more freely")
    search.add_argument("--seed", type=at_least(0), help="of drawn captions (0)")
    return parser
