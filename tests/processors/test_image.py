"""Image processors: numbers of the published transforms, and draws that depend on the generator alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as TF

from bita.processors.image import (
    CLIP_MEAN,
    CLIP_STD,
    EvalImageProcessor,
    TrainImageProcessor,
    _turn,
    resampled,
)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_eval_is_bicubic_resize_and_clip_normalisation() -> None:
    image = picture(61, 40)
    expected = TF.normalize(
        TF.to_tensor(TF.resize(image, [32, 32], InterpolationMode.BICUBIC)), list(CLIP_MEAN), list(CLIP_STD)
    )
    torch.testing.assert_close(EvalImageProcessor(32)(image), expected, rtol=0, atol=1e-6)


def test_mean_and_std_of_the_dataset_are_used() -> None:
    out = EvalImageProcessor(8, mean=[0.5, 0.5, 0.5], std=[0.25, 0.5, 1.0])(
        Image.new("RGB", (9, 9), (255, 255, 255))
    )
    assert out.amax((1, 2)).tolist() == pytest.approx([2.0, 1.0, 0.5])


def test_train_is_crop_resize_flip_of_the_draw() -> None:
    image, processor = picture(61, 40), TrainImageProcessor(24)
    draw = processor.augmentation(61, 40, seeded(3))
    expected = TF.resized_crop(
        image, draw.top, draw.left, draw.height, draw.width, [24, 24], InterpolationMode.BICUBIC
    )
    expected = TF.hflip(expected) if draw.horizontal_flip else expected
    tensor = TF.normalize(TF.to_tensor(expected), list(CLIP_MEAN), list(CLIP_STD))
    torch.testing.assert_close(processor.draw(image, seeded(3)), tensor, rtol=0, atol=1e-6)


def test_crops_are_distributed_as_torchvision_draws_them() -> None:
    processor, reference = TrainImageProcessor(24), RandomResizedCrop(24, scale=(0.5, 1.0))
    torch.manual_seed(0)
    generator, image = seeded(0), torch.empty(3, 60, 90)
    ours = [processor.augmentation(90, 60, generator) for _ in range(3000)]
    theirs = torch.tensor(
        [reference.get_params(image, [0.5, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    ).float()
    mine = torch.tensor([[d.top, d.left, d.height, d.width] for d in ours]).float()
    assert (mine.mean(0) - theirs.mean(0)).abs().max() < 0.6
    assert (mine.std(0) - theirs.std(0)).abs().max() < 0.6
    areas = mine[:, 2] * mine[:, 3] / (60 * 90)
    assert 0.48 < areas.min() < 0.55
    assert areas.max() <= 1
    assert 0.46 < sum(draw.horizontal_flip for draw in ours) / 3000 < 0.54


@pytest.mark.parametrize(("width", "height"), [(1, 1), (300, 4), (4, 300)])
def test_thin_images_fall_back_to_a_centred_crop(width: int, height: int) -> None:
    draw = TrainImageProcessor(8).augmentation(width, height, seeded(0))
    assert 0 <= draw.top <= height - draw.height
    assert 0 <= draw.left <= width - draw.width
    assert TrainImageProcessor(8).draw(picture(width, height), seeded(0)).shape == (3, 8, 8)


def test_same_generator_same_image_other_generator_other_image() -> None:
    image, processor = (
        picture(40, 40),
        TrainImageProcessor(16, vertical_flip=True, rotate90=True, color_jitter=0.3),
    )
    assert torch.equal(processor.draw(image, seeded(1)), processor.draw(image, seeded(1)))
    assert not torch.equal(processor.draw(image, seeded(1)), processor.draw(image, seeded(2)))


def test_options_leave_crop_and_flip_of_a_seed_alone() -> None:
    plain = TrainImageProcessor(16).augmentation(40, 40, seeded(7))
    rich = TrainImageProcessor(16, vertical_flip=True, rotate90=True, color_jitter=0.3).augmentation(
        40, 40, seeded(7)
    )
    assert (plain.top, plain.left, plain.height, plain.width) == (
        rich.top,
        rich.left,
        rich.height,
        rich.width,
    )
    assert plain.horizontal_flip == rich.horizontal_flip
    assert plain.jitter == (1.0, 1.0, 1.0)
    assert not plain.vertical_flip
    assert plain.quarter_turns == 0


def test_rotations_and_flips_cover_all_eight_views() -> None:
    processor = TrainImageProcessor(8, min_scale=1.0, vertical_flip=True, rotate90=True)
    image = picture(8, 8)
    views = {processor.draw(image, seeded(seed)).numpy().tobytes() for seed in range(400)}
    full = TF.normalize(TF.to_tensor(image), list(CLIP_MEAN), list(CLIP_STD))
    turned = [torch.rot90(view, turns, (1, 2)) for view in (full, full.flip(-1)) for turns in range(4)]
    assert all(view.contiguous().numpy().tobytes() in views for view in turned)


def test_cached_pixels_give_what_the_image_gives() -> None:
    images = [picture(40, 40, seed) for seed in range(4)]
    pixels = torch.stack([torch.from_numpy(np.asarray(image).copy()) for image in images])
    processor = TrainImageProcessor(32, vertical_flip=True, rotate90=True, color_jitter=0.2)
    batch = processor.batch(pixels, [seeded(seed) for seed in range(4)])
    single = torch.stack([processor.draw(image, seeded(seed)) for seed, image in enumerate(images)])
    torch.testing.assert_close(batch, single, rtol=0, atol=3 / 255 / min(CLIP_STD))
    evaluated = EvalImageProcessor(40).batch(pixels)
    assert torch.equal(evaluated, torch.stack([EvalImageProcessor(40)(image) for image in images]))


def test_colour_jitter_changes_colours_within_its_bounds() -> None:
    image = Image.new("RGB", (8, 8), (100, 100, 100))
    processor = TrainImageProcessor(8, mean=[0, 0, 0], std=[1, 1, 1], color_jitter=0.5)
    values = torch.stack([processor.draw(image, seeded(seed)).mean() for seed in range(100)])
    assert 50 / 255 <= values.min() < 60 / 255
    assert 140 / 255 < values.max() <= 150.1 / 255
    assert math.isclose(float(values.mean()), 100 / 255, abs_tol=0.03)


@pytest.mark.parametrize(
    "options", [{"min_scale": 0.0}, {"min_scale": 0.9, "max_scale": 0.8}, {"color_jitter": 2.0}]
)
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"scale|color_jitter"):
        TrainImageProcessor(8, **options)  # type: ignore[arg-type]


def test_a_batch_resampled_at_once_is_torchs_interpolation_of_each_and_nearly_pils() -> None:
    """Enlarged, reduced, flipped and turned; PIL rounds between its two passes, which is a level here and there."""
    processor = TrainImageProcessor(32, min_scale=0.1, max_scale=1.0, vertical_flip=True, rotate90=True)
    images = [picture(70, 61, seed) for seed in range(24)]
    draws = [processor.augmentation(70, 61, seeded(seed)) for seed in range(24)]
    assert {draw.height > 32 for draw in draws} == {draw.quarter_turns > 0 for draw in draws} == {True, False}
    found = resampled(torch.from_numpy(np.stack([np.asarray(image) for image in images])), draws, 32)
    errors = []
    for image, draw, out in zip(images, draws, found, strict=True):
        crop = image.crop((draw.left, draw.top, draw.left + draw.width, draw.top + draw.height))
        whole = TF.pil_to_tensor(crop).float()[None]
        torchs = F.interpolate(whole, (32, 32), mode="bicubic", antialias=True)[0]
        torch.testing.assert_close(out, _turn(torchs, draw), rtol=0, atol=2e-3)
        pils = TF.pil_to_tensor(crop.resize((32, 32), Image.Resampling.BICUBIC)).float()
        errors.append((out.clamp(0, 255) - _turn(pils, draw)).abs())
    assert torch.stack(errors).max() < 1.6  # of 255 levels
    assert torch.stack(errors).mean() < 0.4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cached_images_are_augmented_on_the_gpu_as_on_the_cpu() -> None:
    """The draws are the same ones; resizing in floating point instead of whole numbers differs by rounding."""
    pixels = torch.randint(
        0, 256, (6, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    processor = TrainImageProcessor(56, vertical_flip=True, rotate90=True, color_jitter=0.2)
    draws = [[torch.Generator().manual_seed(seed) for seed in range(6)] for _ in range(2)]
    found = processor.batch(pixels.cuda(), draws[0])
    assert found.device.type == "cuda"
    assert (found.cpu() - processor.batch(pixels, draws[1])).abs().max() < 0.05
