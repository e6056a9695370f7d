"""Caption images with a trained model, one caption a line.

python caption.py --checkpoint output/quickstart/caption image.jpg folder/*.tif
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bita.errors import UserError, program


@program
def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="a run's folder, a checkpoint in it, or what scripts/export.py wrote",
    )
    parser.add_argument("--beams", type=int, help="beams of the search (default: as in the run)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--num-captions", type=int, default=1, help="captions an image, tabs between them")
    parser.add_argument("--quantize", default="none", choices=("none", "int8", "int4"))
    args = parser.parse_args()
    settings = {"num_captions": args.num_captions}
    if args.beams is not None:
        settings["num_beams"] = args.beams
    for image in args.images:
        if not image.is_file():
            raise UserError(f"image {image}: no such file")
    import bita

    captioner = bita.load(args.checkpoint, args.device, args.quantize)
    for captions in captioner.candidates(args.images, **settings):
        print(*captions, sep="\t", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
