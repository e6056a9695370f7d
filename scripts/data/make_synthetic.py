"""Draw the synthetic dataset: `python scripts/data/make_synthetic.py OUT [--train 2000 …]`.

What is not said is as in configs/datasets/synthetic/defaults_cap.yaml, which is what a run expects to find.
"""

from __future__ import annotations

import yaml

from bita.commands import at_least, command_line, program
from bita.config.load import CONFIGS
from bita.datasets.synthetic.writer import generate_synthetic
from bita.errors import UserError
from bita.files import user_path


@program
def main() -> int:
    """Parse and draw; 0, or the exit code of the mistake."""
    parser = command_line(__doc__)
    parser.add_argument("out", type=user_path, help="folder to make")
    entry = yaml.safe_load((CONFIGS / "datasets/synthetic/defaults_cap.yaml").read_text())["datasets"]
    defaults: dict[str, int] = entry["synthetic_caption"]["synthetic"]
    wanted = {
        "train": "images",
        "val": "images",
        "test": "images",
        "size": "side in pixels",
        "seed": "any number",
    }
    for key, meaning in wanted.items():
        parser.add_argument(
            f"--{key}",
            type=int if key == "seed" else at_least(1),
            default=defaults[key],
            help=f"{meaning} (%(default)s)",
        )
    args = parser.parse_args()
    if args.out.is_dir() and any(args.out.iterdir()):
        raise UserError(f"{args.out}: is not empty; name a new folder, or remove this one")
    generate_synthetic(args.out, {key: getattr(args, key) for key in wanted})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
