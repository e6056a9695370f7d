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
    parser.add_argument("--checkpoint", required=True, help="a run's folder, or a checkpoint in it")
    parser.add_argument("--beams", type=int, help="beams of the search (default: as in the run)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args()
    settings = {} if args.beams is None else {"num_beams": args.beams}
    for image in args.images:
        if not image.is_file():
            raise UserError(f"image {image}: no such file")
    import bita

    for caption in bita.load(args.checkpoint, args.device).stream(args.images, **settings):
        print(caption, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
