"""Write a trained model as one folder that needs nothing else, or in the layout of the authors' released files.

python scripts/export.py output/bita/caption OUT
python scripts/export.py output/bita/caption OUT.pth --layout published
"""

from __future__ import annotations

import sys

from bita.errors import command_line, program
from bita.files import user_path


@program
def main() -> int:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("run", help="a run's folder (its best checkpoint is taken), or a checkpoint in it")
    parser.add_argument(
        "out", type=user_path, help="a folder, or with --layout published a .pth file, not there yet"
    )
    parser.add_argument("--layout", choices=("folder", "published"), default="folder")
    parser.add_argument("--max-shard", default="5GB", metavar="SIZE", help="largest file of weights (folder)")
    parser.add_argument(
        "--half",
        action="store_true",
        help="one file of weights, in 16 bit (folder; language model trained along)",
    )
    parser.add_argument(
        "--without-stage1",
        dest="stage1",
        action="store_false",
        help="leave out the stage-1 model, which image-text scores need (folder)",
    )
    parser.add_argument(
        "--stac", action="store_true", help="write model.stac.json, an Item of STAC's MLM extension (folder)"
    )
    args = parser.parse_args()
    from bita.export import export_folder, export_published

    if args.layout == "published":
        export_published(args.run, args.out)
    else:
        export_folder(args.run, args.out, max_shard=args.max_shard, half=args.half, stage1=args.stage1)
    if args.stac and args.layout == "folder":
        from bita.scenes.stac import write_model_item

        write_model_item(args.out)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
