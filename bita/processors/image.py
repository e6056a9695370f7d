"""Image processors: PIL image (or cached uint8 array) to a normalised (3, size, size) tensor.

Random draws come from an explicit generator, one vector of numbers an image, so that what an image becomes
depends on the generator's seed alone. Letters: B images, H rows, W columns, S = `image_size`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bita.precision import in_float32

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CROP_ATTEMPTS = 10
ASPECT_RATIOS = (3 / 4, 4 / 3)
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """One image's random draw: the crop in pixels, then what is done to the resized crop."""

    top: int
    left: int
    height: int
    width: int
    horizontal_flip: bool
    vertical_flip: bool
    quarter_turns: int
    jitter: tuple[float, float, float]
    """Factors of brightness, contrast and saturation; 1 leaves the image as it is."""


def random_crop(
    width: int, height: int, scale: tuple[float, float], draws: Sequence[float]
) -> tuple[int, ...]:
    """Return (top, left, height, width) of torchvision's RandomResizedCrop for the uniform numbers `draws`.

    An area of `scale` of the image and a ratio of 3/4 to 4/3 (uniform in its logarithm), ten attempts of
    four numbers each; after those the largest centred crop whose ratio is allowed.
    """
    log_low, log_high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    for attempt in range(CROP_ATTEMPTS):
        u_area, u_ratio, u_top, u_left = draws[4 * attempt : 4 * attempt + 4]
        area = width * height * (scale[0] + (scale[1] - scale[0]) * u_area)
        ratio = math.exp(log_low + (log_high - log_low) * u_ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w
    ratio = min(max(width / height, ASPECT_RATIOS[0]), ASPECT_RATIOS[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def draft_size(image_size: int, min_scale: float) -> tuple[int, int]:
    """Return (width, height) that a JPEG needs so that no random crop has to be enlarged to `image_size`."""
    side = math.ceil(image_size / math.sqrt(min_scale * ASPECT_RATIOS[0]))
    return side, side


class ImageProcessor:
    """Bicubic resize to S×S (the aspect ratio is not kept), then normalise: (x / 255 - mean) / std.

    One of your own extends it and is registered (docs/extending.md).

    Args:
        image_size: S.
        mean: three channel means; CLIP's by default.
        std: three channel deviations; CLIP's by default.

    Attributes:
        scale: smallest and largest share of the image's area that it keeps.
    """

    scale: tuple[float, float] = (1.0, 1.0)

    def __init__(
        self, image_size: int = 224, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != 3:
                raise ValueError(f"{name} wants a number for each of three channels, not {list(values)}")
        if std is not None and min(std) <= 0:
            raise ValueError(f"std must be above 0, not {list(std)}")
        self.image_size = image_size
        self.mean = torch.tensor(CLIP_MEAN if mean is None else list(mean)).view(3, 1, 1)
        self.std = torch.tensor(CLIP_STD if std is None else list(std)).view(3, 1, 1)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return an 8-bit RGB image as evaluation sees it, (3, S, S) float32."""
        return self.normalise_(_to_tensor(_resize(image, self.image_size)))

    def draw(self, image: Image.Image, generator: torch.Generator) -> Tensor:
        """Return an 8-bit RGB image as training sees it, (3, S, S) float32; what is random comes from `generator`."""
        return self(image)

    def normalise_(self, images: Tensor) -> Tensor:
        """Normalise images (..., 3, H, W) in 0..1, in place."""
        return images.sub_(_beside(self.mean, images)).div_(_beside(self.std, images))


class EvalImageProcessor(ImageProcessor):
    """The published one of evaluation, which takes cached images in batches too."""

    def resized(self, image: Image.Image) -> Tensor:
        """Return the RGB image for `batch`, (S, S, 3) uint8."""
        return torch.from_numpy(np.array(_resize(image, self.image_size), dtype=np.uint8))

    def batch(self, pixels: Tensor) -> Tensor:
        """Process cached pixels (B, S, S, 3) uint8, resized already, where they are; returns (B, 3, S, S)."""
        return self.normalise_(
            pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 255
        )


class TrainImageProcessor(ImageProcessor):
    """The published one of training, and cached images in batches: random resized crop (bicubic), horizontal flip.

    More for aerial views is off by default.

    Args:
        image_size: S.
        min_scale: smallest share of the image's area that a crop has.
        max_scale: largest.
        mean: three channel means; CLIP's by default.
        std: three channel deviations; CLIP's by default.
        vertical_flip: also flip top to bottom, every second time.
        rotate90: also turn by 0, 90, 180 or 270 degrees.
        color_jitter: c scales brightness, contrast and saturation, each by 1-c to 1+c; 0 is off.
    """

    def __init__(
        self,
        image_size: int = 224,
        min_scale: float = 0.5,
        max_scale: float = 1.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        vertical_flip: bool = False,
        rotate90: bool = False,
        color_jitter: float = 0.0,
    ) -> None:
        super().__init__(image_size, mean, std)
        if not 0 < min_scale <= max_scale <= 1:
            raise ValueError(f"wanted 0 < min_scale <= max_scale <= 1, not {min_scale} and {max_scale}")
        if not 0 <= color_jitter <= 1:
            raise ValueError(f"color_jitter must be from 0 to 1, not {color_jitter}")
        self.scale = (min_scale, max_scale)
        self.vertical_flip = vertical_flip
        self.rotate90 = rotate90
        self.color_jitter = color_jitter

    def augmentation(self, width: int, height: int, generator: torch.Generator) -> Augmentation:
        """Draw what to do to an image of `width` × `height` pixels."""
        draws = torch.rand(4 * CROP_ATTEMPTS + 6, generator=generator, dtype=torch.float64).tolist()
        flip, upside_down, turn, *jitter = draws[4 * CROP_ATTEMPTS :]
        top, left, crop_height, crop_width = random_crop(width, height, self.scale, draws)
        brightness, contrast, saturation = (1 + self.color_jitter * (2 * u - 1) for u in jitter)
        return Augmentation(
            top=top,
            left=left,
            height=crop_height,
            width=crop_width,
            horizontal_flip=flip < 0.5,
            vertical_flip=self.vertical_flip and upside_down < 0.5,
            quarter_turns=int(4 * turn) if self.rotate90 else 0,
            jitter=(brightness, contrast, saturation),
        )

    def draw(self, image: Image.Image, generator: torch.Generator) -> Tensor:
        """See `ImageProcessor.draw`."""
        draw = self.augmentation(image.width, image.height, generator)
        box = (draw.left, draw.top, draw.left + draw.width, draw.top + draw.height)
        pixels = _turn(_to_tensor(_resize(image.crop(box), self.image_size)), draw)
        return self._finish(pixels[None], [draw])[0]

    def batch(self, pixels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Augment cached pixels (B, H, W, 3) uint8 on their own device; returns (B, 3, S, S) float32."""
        size = self.image_size
        draws = [self.augmentation(pixels.shape[2], pixels.shape[1], drawn) for drawn in generators]
        if pixels.device.type != "cpu":
            return self.on_device(pixels, draws)
        out = torch.empty((len(draws), 3, size, size), dtype=torch.uint8)
        with one_thread():
            for image, draw, target in zip(pixels.permute(0, 3, 1, 2), draws, out, strict=True):
                crop = image[None, :, draw.top : draw.top + draw.height, draw.left : draw.left + draw.width]
                resized = F.interpolate(crop, (size, size), mode="bicubic", antialias=True)[0]
                target.copy_(_turn(resized, draw))
        return self._finish(out.float().clamp_(0, 255).div_(255), draws)

    def on_device(self, pixels: Tensor, draws: Sequence[Augmentation]) -> Tensor:
        """Do to pixels what was drawn for them, many images in one operation: what an accelerator has of `batch`."""
        return self._finish(resampled(pixels, draws, self.image_size).clamp_(0, 255).div_(255), draws)

    def _finish(self, images: Tensor, draws: Sequence[Augmentation]) -> Tensor:
        """Jitter the colours of images (B, 3, S, S) in 0..1, if asked for, and normalise them."""
        if self.color_jitter:
            images = _jitter(images, torch.tensor([draw.jitter for draw in draws]))
        return self.normalise_(images)


def resampled(pixels: Tensor, draws: Sequence[Augmentation], size: int) -> Tensor:
    """Crop, resize, flip and turn all images of a batch at once, as two matrix products for each: for accelerators.

    What torch's antialiased bicubic interpolation gives for each crop by itself, but for the rounding of float32.

    Args:
        pixels: (B, H, W, 3) uint8.
        draws: B.
        size: S.

    Returns:
        (B, 3, S, S) float32, on the same device; bicubic, so a little beyond 0..255 here and there.
    """
    columns = [
        (d.top, d.height, d.vertical_flip, d.left, d.width, d.horizontal_flip, d.quarter_turns) for d in draws
    ]
    drawn = torch.tensor(columns, dtype=torch.float32).to(pixels.device, non_blocking=True)
    top, height, upside_down, left, width, flip, turns = drawn[:, :, None, None].unbind(1)
    with in_float32(pixels.device):
        rows = _weights(top, height, upside_down, size, pixels.shape[1])
        across = _weights(left, width, flip, size, pixels.shape[2])
        out = rows[:, None] @ pixels.permute(0, 3, 1, 2).float() @ across[:, None].mT
    for turn in {d.quarter_turns for d in draws} - {0}:
        out = torch.where(turns[..., None] == turn, torch.rot90(out, turn, (-2, -1)), out)
    return out


def _weights(start: Tensor, length: Tensor, flip: Tensor, size: int, side: int) -> Tensor:
    """What each of `side` pixels counts in each of `size` new ones, made of `length` pixels from `start` on.

    `start`, `length` and `flip` are (B, 1, 1); returns (B, size, side), rows that add up to 1.
    """
    new = torch.arange(size, device=start.device)[:, None]
    new = torch.where(flip > 0, size - 1 - new, new)
    old = torch.arange(side, device=start.device) - start
    scale = length / size
    far = ((old + 0.5 - scale * (new + 0.5)) / scale.clamp(min=1)).abs()
    near = (1.5 * far - 2.5) * far * far + 1  # the cubic convolution of a = -0.5
    weights = torch.where(far < 1, near, ((-0.5 * far + 2.5) * far - 4) * far + 2)
    weights = weights.masked_fill((far >= 2) | (old < 0) | (old >= length), 0)
    return weights / weights.sum(dim=2, keepdim=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Small operations on one thread: torch's threads cost more than they give, many times more on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _resize(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _to_tensor(image: Image.Image) -> Tensor:
    array: npt.NDArray[np.uint8] = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous().float() / 255


def _beside(numbers: Tensor, images: Tensor) -> Tensor:
    """Return a few numbers where the images are, in their type; the host does not wait for the device."""
    return numbers.to(images.device, images.dtype, non_blocking=True)


def _turn(image: Tensor, draw: Augmentation) -> Tensor:
    """Flip and turn one image (3, S, S)."""
    axes = [axis for axis, flip in ((-1, draw.horizontal_flip), (-2, draw.vertical_flip)) if flip]
    image = image.flip(axes) if axes else image
    return torch.rot90(image, draw.quarter_turns, (-2, -1)) if draw.quarter_turns else image


def _jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Scale brightness, contrast and saturation of images (B, 3, H, W) in 0..1 by `factors` (B, 3)."""
    brightness, contrast, saturation = _beside(factors, images).view(-1, 3, 1, 1, 1).unbind(1)
    luma = _beside(torch.tensor(LUMA), images).view(3, 1, 1)
    images = (images * brightness).clamp(0, 1)
    mean = (images * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images = (mean + (images - mean) * contrast).clamp(0, 1)
    grey = (images * luma).sum(1, keepdim=True)
    return (grey + (images - grey) * saturation).clamp(0, 1)
