"""The drawing surface of a synthetic scene: rotation, sun, ground textures, shadows, sensor.

Places are complex numbers `x + iy` in scene units: the picture spans about [-1, 1] in both directions, whatever
its size in pixels, and the whole scene is turned and zoomed at random. Drawing happens at `SUPERSAMPLE` times the
final size.
"""

from __future__ import annotations

import cmath
import math
import random
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SUPERSAMPLE = 2
SUN_DIRECTIONS = 8
TILE = 512
SHADOW = (12, 16, 28)

Colour = tuple[int, int, int]
Shape = Sequence[complex]

MATERIALS: dict[str, tuple[str, tuple[tuple[Colour, Colour], ...]]] = {
    "lawn": (
        "cloudy",
        (
            ((58, 90, 46), (98, 130, 68)),
            ((74, 92, 50), (112, 124, 74)),
            ((40, 66, 42), (72, 98, 56)),
            ((84, 118, 52), (124, 152, 76)),
            ((104, 108, 62), (140, 138, 86)),
        ),
    ),
    "bare ground": (
        "cloudy",
        (
            ((138, 114, 84), (182, 158, 122)),
            ((136, 98, 70), (176, 134, 100)),
            ((168, 154, 128), (202, 190, 166)),
            ((98, 82, 66), (134, 114, 92)),
            ((154, 126, 82), (190, 162, 112)),
        ),
    ),
    "concrete": (
        "grain",
        (
            ((146, 146, 142), (176, 175, 170)),
            ((122, 124, 126), (148, 149, 150)),
            ((176, 170, 156), (204, 198, 184)),
        ),
    ),
    "asphalt": ("grain", (((68, 70, 74), (92, 94, 97)), ((94, 95, 96), (118, 118, 118)))),
    "sand": ("cloudy", (((204, 184, 142), (230, 214, 178)), ((190, 174, 140), (218, 204, 172)))),
    "blue water": (
        "waves",
        (((26, 60, 92), (50, 92, 126)), ((34, 78, 112), (62, 110, 142)), ((22, 44, 78), (40, 68, 104))),
    ),
    "green water": (
        "waves",
        (((38, 78, 66), (62, 106, 88)), ((52, 88, 66), (80, 116, 88)), ((26, 56, 48), (46, 80, 66))),
    ),
    "brown water": ("waves", (((98, 90, 62), (128, 118, 86)), ((86, 72, 54), (112, 96, 74)))),
}
"""Texture and the palettes (darkest, lightest) that a scene draws one of."""


@lru_cache(maxsize=1)
def _textures() -> dict[str, NDArray[np.uint8]]:
    """Tileable noise fields (TILE, TILE) of several spectra, the same in every process."""
    rng = np.random.default_rng(20240131)
    fy = np.fft.fftfreq(TILE)[:, None] * TILE
    fx = np.fft.rfftfreq(TILE)[None, :] * TILE
    radius = np.hypot(fx, fy)
    radius[0, 0] = 1.0
    spectra = {
        "cloudy": 0.6 * radius**-1.0 + 4.0 * radius**-1.6 + 0.01,
        "grain": 0.35 * radius**-0.9 + 0.02,
        "waves": np.exp(-(((np.hypot(fx * 0.35, fy) - 34) / 16) ** 2)) + 3.0 * radius**-1.6,
        "white": np.ones_like(radius),
    }
    fields = {}
    for name, spectrum in spectra.items():
        noise = np.fft.rfft2(rng.standard_normal((TILE, TILE))) * spectrum
        noise[0, 0] = 0
        field = np.fft.irfft2(noise, s=(TILE, TILE))
        fields[name] = np.clip(127.5 + 50 * field / field.std(), 0, 255).astype(np.uint8)
    return fields


def _window(name: str, rng: random.Random, size: int) -> NDArray[np.uint8]:
    """Return a random window (size, size) of a texture, also flipped and transposed."""
    field = _textures()[name]
    if size > TILE:
        field = np.tile(field, (-(-size // TILE) + 1, -(-size // TILE) + 1))
    y, x = (rng.randrange(field.shape[0] - size + 1) for _ in range(2))
    window = field[y : y + size, x : x + size][:: rng.choice((1, -1)), :: rng.choice((1, -1))]
    return np.ascontiguousarray(window.T if rng.random() < 0.5 else window)


def coloured(levels: NDArray[np.uint8], dark: Colour, light: Colour) -> Image.Image:
    """Return an RGB picture from levels (H, W): 0 is dark, 255 light."""
    ramp = np.linspace(0, 1, 256)[:, None]
    image = Image.fromarray(levels).convert("P")
    image.putpalette((np.array(dark) * (1 - ramp) + np.array(light) * ramp).astype(np.uint8).tobytes())
    return image.convert("RGB")


def shade(colour: Colour, factor: float) -> Colour:
    """Return a colour made darker (factor < 1) or lighter."""
    r, g, b = (max(0, min(255, round(v * factor))) for v in colour)
    return r, g, b


def hull(points: Iterable[complex]) -> list[complex]:
    """Convex hull, by Andrew's monotone chain."""
    ordered = sorted(set(points), key=lambda z: (z.real, z.imag))

    def half(chain: Iterable[complex]) -> list[complex]:
        out: list[complex] = []
        for p in chain:
            while len(out) > 1 and ((out[-1] - out[-2]).conjugate() * (p - out[-1])).imag <= 0:
                out.pop()
            out.append(p)
        return out[:-1]

    return half(ordered) + half(reversed(ordered))


def disc(centre: complex, radius: float, corners: int = 20) -> list[complex]:
    """Return a circle as a polygon."""
    return [centre + cmath.rect(radius, 2 * math.pi * k / corners) for k in range(corners)]


def rectangle(centre: complex, width: float, height: float, turn: complex = 1) -> list[complex]:
    """Return a rectangle, `turn` a complex number of modulus one."""
    w, h = width / 2, height / 2
    return [centre + turn * p for p in (complex(-w, -h), complex(w, -h), complex(w, h), complex(-w, h))]


def band(path: Shape, width: float) -> list[complex]:
    """Return a polygon of constant width along a path."""
    left, right = [], []
    for k, p in enumerate(path):
        along = path[min(k + 1, len(path) - 1)] - path[max(k - 1, 0)]
        normal = 1j * along / abs(along) * width / 2
        left.append(p + normal)
        right.append(p - normal)
    return left + right[::-1]


@lru_cache(maxsize=128)
def _forest(px: int, sun: int, variant: int) -> Image.Image:
    """Return a tile (px, px) full of tree crowns, lit from one of `SUN_DIRECTIONS`."""
    rng = random.Random(f"forest {sun} {variant}")
    dark = ((22, 40, 24), (36, 54, 28), (26, 44, 36), (50, 54, 28))[variant]
    image = Image.new("RGB", (px, px), dark)
    draw = ImageDraw.Draw(image)
    step = cmath.rect(1, 2 * math.pi * sun / SUN_DIRECTIONS)
    base = px / 256
    for _ in range(900):
        centre, radius = complex(rng.random(), rng.random()) * px, rng.uniform(5.0, 9.5) * base
        green = rng.uniform(0.75, 1.25)
        for offset, size, light in ((0.35, 1.0, 0.9), (0.0, 0.92, 1.6), (-0.25, 0.55, 2.1)):
            spot, r = centre + step * radius * offset, radius * size
            for dx in (-px, 0, px) if min(spot.real, px - spot.real) < radius * 2 else (0,):
                box = (spot.real + dx - r, spot.imag - r, spot.real + dx + r, spot.imag + r)
                draw.ellipse(box, fill=shade(dark, light * green))
    return image


class Canvas:
    """One scene being drawn.

    Args:
        rng: the scene's own random numbers.
        size: side of the finished picture in pixels.
    """

    def __init__(self, rng: random.Random, size: int) -> None:
        self.rng = rng
        self.size = size
        self.px = size * SUPERSAMPLE
        self.unit = self.px / 2 * rng.uniform(0.9, 1.04)
        self._turn = cmath.rect(self.unit, rng.uniform(0, 2 * math.pi))
        shift = complex(rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05))
        self._centre = (complex(0.5, 0.5) + shift) * self.px
        self._sun = rng.randrange(SUN_DIRECTIONS)
        length = rng.uniform(0.55, 1.15)
        self._cast = cmath.rect(length, 2 * math.pi * self._sun / SUN_DIRECTIONS) * self.unit
        self.shadow_step = self._cast / self._turn
        """Where the shadow of a point one unit high falls, relative to its foot."""
        self.leaf = rng.choice(((38, 66, 36), (52, 76, 40), (44, 70, 52), (66, 80, 42)))
        self._shadow = (*SHADOW, rng.randrange(105, 150))
        self._materials: dict[str, Image.Image] = {}
        self.image = Image.new("RGB", (self.px, self.px))
        self._draw = ImageDraw.Draw(self.image, "RGBA")
        self._taken = Image.new("L", (self.px, self.px))
        self._taken_draw = ImageDraw.Draw(self._taken)

    def _pixels(self, shape: Shape) -> list[tuple[float, float]]:
        turn, centre = self._turn, self._centre
        return [((z := p * turn + centre).real, z.imag) for p in shape]

    # Materials.

    def material(self, name: str) -> Image.Image:
        """Return the scene's own picture of a material, or of `trees`, (px, px)."""
        if name not in self._materials:
            if name == "trees":
                self._materials[name] = _forest(self.px, self._sun, self.rng.randrange(4))
            else:
                texture, palettes = MATERIALS[name]
                dark, light = self.rng.choice(palettes)
                gain = self.rng.uniform(0.9, 1.1)
                self._materials[name] = self.textured(texture, shade(dark, gain), shade(light, gain))
        return self._materials[name]

    def textured(self, texture: str, dark: Colour, light: Colour) -> Image.Image:
        """Return a picture (px, px) of a noise field between two colours."""
        return coloured(_window(texture, self.rng, self.px), dark, light)

    def furrows(self, dark: Colour, light: Colour, angle: float, spacing: float) -> Image.Image:
        """Return a picture (px, px) of parallel furrows; angle in the scene's frame, spacing in scene units."""
        across = cmath.rect(1, angle) * self._turn / self.unit
        rate = 256 / (spacing * self.unit)
        steps = np.arange(self.px)
        rows = (steps * (across.imag * rate)).astype(np.int32)[:, None]
        columns = (steps * (across.real * rate)).astype(np.int32)[None, :]
        phase = np.abs(((rows + columns) & 255) - 128)
        noise = _window("cloudy", self.rng, self.px).astype(np.int32) - 128
        return coloured(np.clip(phase + 64 + noise // 2, 0, 255).astype(np.uint8), dark, light)

    # Drawing.

    def cover(self, material: str | Image.Image) -> None:
        """Fill the whole picture."""
        self.image.paste(self.material(material) if isinstance(material, str) else material)

    def fill(self, shape: Shape, paint: str | Image.Image | Colour) -> None:
        """Fill a polygon with a material or a colour."""
        if isinstance(paint, tuple):
            self._draw.polygon(self._pixels(shape), fill=paint)
            return
        pixels = self._pixels(shape)
        left, top = (max(0, int(min(p[k] for p in pixels))) for k in range(2))
        right, bottom = (min(self.px, int(max(p[k] for p in pixels)) + 2) for k in range(2))
        if left >= right or top >= bottom:
            return
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in pixels], fill=255)
        picture = self.material(paint) if isinstance(paint, str) else paint
        self.image.paste(picture.crop((left, top, right, bottom)), (left, top), mask)

    def blend(self, paint: Image.Image, share: float) -> None:
        """Lay a paint over a share of the picture, in soft-edged natural patches."""
        noise = _window("cloudy", self.rng, self.px)
        edge = np.sort(noise[::8, ::8], axis=None)[-1 - int(share * (noise[::8, ::8].size - 1))]
        mask = np.clip((noise.astype(np.int16) - edge) * 9, 0, 255).astype(np.uint8)
        self.image.paste(paint, mask=Image.fromarray(mask))

    def line(self, path: Shape, colour: Colour, width: float) -> None:
        """A line of a width in scene units, at least one drawn pixel wide."""
        pixels = max(1, round(width * self.unit))
        self._draw.line(self._pixels(path), fill=colour, width=pixels, joint="curve" if pixels > 3 else None)

    def circle(self, centre: complex, radius: float, colour: Colour) -> None:
        """A filled circle."""
        (x, y), r = self._pixels([centre])[0], radius * self.unit
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def shadow(self, shape: Shape, height: float, *, convex: bool = True) -> None:
        """The shadow of an upright body on that base, or of a flat shape at that height if not convex."""
        offset = self.shadow_step * height
        moved = [p + offset for p in shape]
        self._draw.polygon(self._pixels(hull([*shape, *moved]) if convex else moved), fill=self._shadow)

    def disc_shadow(self, centre: complex, radius: float, height: float) -> None:
        """The shadow of an upright cylinder."""
        offset = self.shadow_step * height
        side = offset / abs(offset) * radius
        arc = [side * cmath.rect(1, math.pi * (k / 6 - 0.5)) for k in range(7)]
        shape = [*(centre + offset + p for p in arc), *(centre - p for p in arc)]
        self._draw.polygon(self._pixels(shape), fill=self._shadow)

    # What is free for trees, cars and houses.

    def keep_clear(self, shape: Shape) -> None:
        """Mark a polygon as taken."""
        self._taken_draw.polygon(self._pixels(shape), fill=255)

    def free(self, centre: complex, radius: float) -> bool:
        """Return whether a disc touches nothing that was marked; what is outside the picture is free."""
        r = radius * self.unit
        (x, y) = self._pixels([centre])[0]
        for dx, dy in (
            (0, 0),
            (1, 0),
            (-1, 0),
            (0, 1),
            (0, -1),
            (0.7, 0.7),
            (-0.7, 0.7),
            (0.7, -0.7),
            (-0.7, -0.7),
        ):
            spot = (int(x + dx * r), int(y + dy * r))
            if 0 <= spot[0] < self.px and 0 <= spot[1] < self.px and self._taken.getpixel(spot):
                return False
        return True

    def somewhere(self) -> complex:
        """Return a random place in the picture."""
        place = complex(self.rng.random(), self.rng.random()) * self.px
        return (place - self._centre) / self._turn

    # The finished picture.

    def finish(self) -> Image.Image:
        """Scale down, then light, blur and noise of a sensor: RGB (size, size)."""
        rng = self.rng
        sharpness = rng.choice((Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC))
        pixels = np.asarray(self.image.resize((self.size, self.size), sharpness), np.float32)
        light = 1 + (_window("cloudy", rng, self.size).astype(np.float32) - 127.5) * 0.0008
        ramp = np.linspace(-1, 1, self.size, dtype=np.float32)
        light += ramp[:, None] * rng.uniform(-0.16, 0.16) + ramp * rng.uniform(-0.16, 0.16)
        exposure = rng.uniform(0.74, 1.28)
        gain = np.array([rng.uniform(0.93, 1.07) * exposure for _ in range(3)], np.float32)
        noise = (_window("white", rng, self.size).astype(np.float32) - 127.5) * rng.uniform(0.02, 0.07)
        haze = rng.uniform(0, 45)
        pixels = pixels * gain * light[:, :, None] * (1 - haze / 255) + haze + noise[:, :, None]
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
