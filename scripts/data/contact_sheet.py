"""Draw examples of every kind of synthetic scene, a caption under each: `python scripts/data/contact_sheet.py OUT`.

The sheet in the README is `python scripts/data/contact_sheet.py docs/synthetic_contact_sheet.png`.
"""

from __future__ import annotations

import textwrap

from PIL import Image, ImageDraw, ImageFont

from bita.commands import at_least, command_line, program
from bita.datasets.synthetic import SCENES, Facts, draw_scene, five_captions
from bita.files import user_path

SIZE, WIDTH, TEXT, GAP = 144, 192, 46, 8
FONT_SIZE, LINE_CHARS = 11, 33
COLOURS = 128
"""The sheet is stored with a palette, to stay small in the repository."""


def examples(kind: str, each: int, seed: int) -> list[str]:
    """Seeds of scenes of a kind that differ in count and colour as far as that is quickly found."""
    keys: list[str] = []
    shown: list[Facts] = []
    for k in range(8 * each):
        key = f"{seed} sheet {kind} {k}"
        _, facts = draw_scene(kind, key, 64)
        new = all(facts.count != other.count or facts.count is None for other in shown)
        new = new and all(facts.colour != other.colour or facts.colour is None for other in shown)
        if len(keys) < each and (new or 8 * each - k <= each - len(keys)):
            keys.append(key)
            shown.append(facts)
    return keys


def contact_sheet(each: int, columns: int, seed: int) -> Image.Image:
    """Return a sheet with `each` scenes of every kind, `columns` in a row."""
    cells = [(kind, key) for kind in SCENES for key in examples(kind, each, seed)]
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * WIDTH + GAP, rows * (SIZE + TEXT + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for index, (kind, key) in enumerate(cells):
        row, column = divmod(index, columns)
        left, top = column * WIDTH + GAP, row * (SIZE + TEXT + GAP) + GAP
        picture, facts = draw_scene(kind, key, SIZE)
        sheet.paste(picture, (left + (WIDTH - GAP - SIZE) // 2, top))
        text = "\n".join(textwrap.wrap(five_captions(facts, key)[0].removesuffix(" ."), LINE_CHARS))
        draw.multiline_text(
            (left + (WIDTH - GAP) // 2, top + SIZE + 2), text, "black", font, "ma", spacing=1, align="center"
        )
    return sheet


@program
def main() -> int:
    """Parse, draw, save."""
    parser = command_line("Draw a contact sheet of the synthetic scenes.")
    parser.add_argument("out", type=user_path, help="PNG to write")
    parser.add_argument("--each", type=at_least(1), default=2, help="scenes of a kind (%(default)s)")
    parser.add_argument("--columns", type=at_least(1), default=4, help="scenes in a row (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    args = parser.parse_args()
    sheet = contact_sheet(args.each, args.columns, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(
        args.out, optimize=True
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
