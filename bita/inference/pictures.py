"""Pictures for people: a map laid over an image, and images with texts below them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from importlib.resources import files
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""Colours from nothing to the highest value, equal steps apart; brightness rises evenly, for colour-blind eyes too."""
OPAQUE = 0.75
"""Of the highest value."""
FONT_SIZE, LINE_CHARS, MARGIN, LINES = 10, 31, 8, 3
"""Of a sheet: height of the font, letters and lines of a text, space between cells."""
SIDE, WIDTH = 144, 192
"""Of a cell: the image's longer side, and what it has beside it, in pixels."""


def overlay(
    image: Image.Image, values: npt.NDArray[np.floating], highest: float | None = None
) -> Image.Image:
    """Lay a map over an image.

    Args:
        image: any size; the map is stretched to it.
        values: (rows, columns), row by row from the image's top; what is below 0 counts as 0.
        highest: the value that is hottest; None: the map's own.

    Returns:
        8-bit RGB of the image's size: the image itself where the map is 0, hot and opaque where it is highest.
    """
    rgb, share = image.convert("RGB"), np.clip(values.astype(np.float32), 0, None)
    share /= max(float(share.max()) if highest is None else highest, 1e-30)
    spread = Image.fromarray(share).resize(rgb.size, Image.Resampling.BILINEAR)
    share = np.clip(np.asarray(spread), 0, 1)
    steps = np.linspace(0, 1, len(HEAT))
    heat = np.stack([np.interp(share, steps, channel) for channel in zip(*HEAT, strict=True)], axis=-1)
    opaque = (OPAQUE * share)[..., None]
    mixed = np.asarray(rgb) * (1 - opaque) + heat * opaque
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def sheet(cells: Sequence[tuple[Image.Image, str]], columns: int) -> Image.Image:
    """Images in rows of `columns`, each with its text below, cut after a few lines; white, 8-bit RGB."""
    columns = max(1, min(columns, len(cells)))
    texts = [textwrap.wrap(text, LINE_CHARS, max_lines=LINES, placeholder=" …") for _, text in cells]
    below = (FONT_SIZE + 3) * max([1, *map(len, texts)]) + 2
    height = SIDE + below + MARGIN
    rows = -(-len(cells) // columns)
    found = Image.new("RGB", (columns * WIDTH + MARGIN, rows * height + MARGIN), "white")
    draw, font = ImageDraw.Draw(found), _font()
    for number, ((image, _), lines) in enumerate(zip(cells, texts, strict=True)):
        row, column = divmod(number, columns)
        middle, top = column * WIDTH + (WIDTH + MARGIN) // 2, row * height + MARGIN
        small = _fitted(image)
        found.paste(small, (middle - small.width // 2, top + (SIDE - small.height) // 2))
        draw.multiline_text(
            (middle, top + SIDE + 2), "\n".join(lines), "black", font, "ma", spacing=2, align="center"
        )
    return found


def _font() -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings: it has the letters of Latin, Greek and Cyrillic, Pillow's own has ASCII's."""
    font = files("matplotlib") / "mpl-data/fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(BytesIO(font.read_bytes()), FONT_SIZE)


def _fitted(image: Image.Image) -> Image.Image:
    """An image whose longer side is `SIDE`."""
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
