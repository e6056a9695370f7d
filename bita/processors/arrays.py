"""Images that a program holds, as samples that are shown by the rules of files: arrays, tensors, open rasters.

Letters: H rows, W columns, C bands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bita.errors import UserError
from bita.processors.samples import Samples, check_size

ACCEPTED = (
    "a path, a PIL image, an encoded image's bytes or an open file of them, an array (H, W), (H, W, 3) or "
    "(H, W, bands), a tensor (C, H, W), an open raster of rasterio, or a pair (raster, window)"
)
"""Kinds of images, for messages."""


def is_raster(value: object) -> bool:
    """Return whether `value` is an open raster of rasterio, or a pair of one and a window, without importing it."""
    if isinstance(value, tuple):
        return len(value) == 2 and is_raster(value[0])
    return all(hasattr(value, name) for name in ("read_masks", "colorinterp", "count"))


def samples_of(value: object) -> Samples:
    """Return the samples of an array, a tensor or a raster.

    An array says nothing about transparency: it has none. A raster's nodata, mask and transparency count as a file's.

    Raises:
        UserError: it has another shape or type than an image, or no pixels.
    """
    if is_raster(value):
        return _read_raster(*value) if isinstance(value, tuple) else _read_raster(value, None)
    if isinstance(value, torch.Tensor):
        return _of_array(_channels_last(value))
    if isinstance(value, np.ndarray):
        if value.ndim == 3 and _looks_like_channels(*value.shape):
            raise UserError(f"array of shape {value.shape}; wanted (H, W, C), or make it a tensor (C, H, W)")
        return _of_array(value)
    raise UserError(f"wanted {ACCEPTED}, not {'None' if value is None else type(value).__name__}")


def _looks_like_channels(first: int, second: int, third: int) -> bool:
    """Return whether the first of three dimensions, rather than the last, is that of the bands."""
    return first <= 4 and min(second, third) >= 16


def _channels_last(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    if tensor.ndim == 3 and _looks_like_channels(*reversed(tensor.shape)):
        raise UserError(f"tensor of shape {tuple(tensor.shape)}; wanted (C, H, W), or make it an array")
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    if tensor.ndim not in (2, 3):
        raise UserError(f"tensor of shape {tuple(tensor.shape)}; wanted (C, H, W)")
    values: np.ndarray[Any, Any] = tensor.numpy()
    return values if values.ndim == 2 else np.moveaxis(values, 0, -1)


def _of_array(values: np.ndarray[Any, Any]) -> Samples:
    if values.ndim not in (2, 3):
        raise UserError(f"array of shape {values.shape}; wanted (H, W), (H, W, 3) or (H, W, bands)")
    if values.dtype.kind not in "buif":
        raise UserError(f"array of {values.dtype}; wanted whole or real numbers")
    values = values[:, :, None] if values.ndim == 2 else values
    if not values.shape[2]:
        raise UserError(f"array of shape {values.shape}; wanted one band at least")
    check_size(values.shape[1], values.shape[0], values.shape[2])
    return Samples(values.astype(np.uint8) * 255 if values.dtype == bool else values)


def _read_raster(raster: Any, window: Any) -> Samples:
    """Read a raster, or a window of it; of a palette its colours."""
    from rasterio.enums import ColorInterp, MaskFlags
    from rasterio.windows import Window

    if window is not None and not isinstance(window, Window):
        window = Window.from_slices(*window, height=raster.height, width=raster.width)
    width, height = (raster.width, raster.height) if window is None else (window.width, window.height)
    check_size(int(width), int(height), raster.count)
    values = np.moveaxis(raster.read(window=window), 0, -1)
    if not values.size:
        raise UserError(f"{raster.name}: the window holds no pixels of it")
    kinds = list(raster.colorinterp)
    if kinds == [ColorInterp.palette]:
        table = raster.colormap(1)
        colours = np.zeros((max(table) + 1, 3), np.uint8)
        for index, colour in table.items():
            colours[index] = colour[:3]
        return Samples(colours[values[:, :, 0].astype(np.int64).clip(0, len(colours) - 1)])
    alpha = kinds.index(ColorInterp.alpha) if ColorInterp.alpha in kinds else None
    valid = None
    masks = [flags for flags in raster.mask_flag_enums if MaskFlags.alpha not in flags]
    if values.dtype != np.uint8 and any(flags != [MaskFlags.all_valid] for flags in masks):
        valid = np.moveaxis(raster.read_masks(window=window), 0, -1) > 0
    return Samples(values, valid, alpha)
