"""What the page shows of captions: HTML from templates, pictures in it as data."""

from __future__ import annotations

import base64
import io
import secrets
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image, ImageOps

from bita.errors import UserError
from bita.inference.attention import Look
from bita.inference.captions import Caption

_TEMPLATES = Environment(loader=PackageLoader("bita.app"), autoescape=True, trim_blocks=True)


def data_url(image: Image.Image, side: int, least: int = 0) -> str:
    """Return a picture as an address that holds it, its longer side `side` pixels at most, and `least` at least."""
    small = image.copy()
    small.thumbnail((side, side))
    if max(small.size) < least:
        small = ImageOps.contain(small, (least, least))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _show(**values: Any) -> str:
    return _TEMPLATES.get_template("result.html.j2").render(**values)


def hint(text: str) -> str:
    """Return what to do next."""
    return _show(hint=text)


def error(found: UserError | str) -> str:
    """Return what went wrong."""
    return _show(error=str(found))


def result(record: Caption, image: Image.Image, look: Look | None, where: str) -> str:
    """Return a caption with what is known of it.

    Args:
        record: of the image.
        image: what was captioned.
        look: where the model looked; None: not known.
        where: what of which file that is.
    """
    maps = []
    if look is not None:
        pictures = [("(all)", look.overlay())]
        pictures += [(found.word, look.overlay(place)) for place, found in enumerate(look.words)]
        maps = [{"word": word, "picture": data_url(picture, 448)} for word, picture in pictures]
    return _show(
        record=record, picture=data_url(image, 448), maps=maps, where=where, key=secrets.token_hex(4)
    )


def card(
    name: str,
    image: Image.Image | None,
    record: Caption | None = None,
    *,
    error: UserError | None = None,
    score: float | None = None,
) -> dict[str, Any]:
    """Return what `cards` shows of one image."""
    return {
        "name": name,
        "picture": None if image is None else data_url(image, 320),
        "record": record,
        "error": None if error is None else str(error),
        "score": score,
    }


def cards(found: list[dict[str, Any]]) -> str:
    """Return images beside each other, each with its caption."""
    return _show(cards=found)


def word_rules(count: int) -> str:
    """Return the style rules by which the chosen one of `count` maps is shown, without a script."""
    rules = []
    for k in range(1, count + 1):
        chosen = f".looked input:nth-of-type({k})"
        rules += [
            f"{chosen}:checked ~ .shown img:nth-of-type({k}) {{ display: block }}",
            f"{chosen}:checked ~ .words label:nth-of-type({k}) {{ background: var(--color-accent); color: #fff }}",
            f"{chosen}:focus-visible ~ .words label:nth-of-type({k}) {{ outline: 2px solid var(--color-accent) }}",
        ]
    return "\n".join(rules)
