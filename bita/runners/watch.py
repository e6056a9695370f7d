"""Scalars of training steps, kept on the device and fetched now and then, and what is suspicious about them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from bita import distributed

SPIKE = 2.0
"""A window whose loss is this many times the median of recent windows is reported."""
RECENT = 20
"""Windows that the median is over."""


@dataclass
class BadStep:
    """A step that was left out since its loss or gradient was not finite, with the images of every process."""

    step: int
    image_ids: list[int]


@dataclass
class Window:
    """What was fetched: means over the steps and processes since the fetch before."""

    means: dict[str, float] = field(default_factory=dict)
    bad: list[BadStep] = field(default_factory=list)
    bad_in_a_row: int = 0
    spike: float | None = None
    """How many times the usual loss this window's is, when that is suspicious."""


class StepWatch:
    """Collects scalars without waiting for the device.

    Args:
        gradients_may_overflow: a gradient that is not finite is no fault by itself (float16 with a scaler).
    """

    def __init__(self, gradients_may_overflow: bool = False) -> None:
        self._tolerant = gradients_may_overflow
        self._scalars: dict[str, list[Tensor]] = {}
        self._norms: list[Tensor] = []
        self._steps: list[tuple[int, list[int], list[Tensor]]] = []
        self._losses: deque[float] = deque(maxlen=RECENT)
        self._in_a_row = 0

    def add(
        self, step: int, outputs: Sequence[dict[str, Tensor]], norm: Tensor, image_ids: list[int]
    ) -> None:
        """One optimizer step: what its batches gave, the norm of its gradients, the images in it."""
        for output in outputs:
            for name, value in output.items():
                self._scalars.setdefault(name, []).append(value)
        self._norms.append(norm)
        self._steps.append((step, image_ids, [output["loss"] for output in outputs]))

    def fetch(self) -> Window:
        """Everything since the last fetch; all processes call it at the same step. Waits for the device."""
        if not self._steps:
            return Window(bad_in_a_row=self._in_a_row)
        bad = self._bad_here()
        sums = {name: _finite_sum(values) for name, values in self._scalars.items()}
        sums["grad_norm"] = _finite_sum(self._norms)
        steps = [step for step, _, _ in self._steps]
        self._scalars, self._norms, self._steps = {}, [], []
        return self._merge(steps, distributed.gather_objects((sums, bad)))

    def _bad_here(self) -> dict[int, list[int]]:
        """Step → this process's image ids, for the steps that were left out."""
        norms_good = torch.isfinite(torch.stack(self._norms)).tolist()
        losses_good = torch.stack([torch.isfinite(torch.stack(losses)).all() for _, _, losses in self._steps])
        return {
            step: image_ids
            for (step, image_ids, _), norm_good, loss_good in zip(
                self._steps, norms_good, losses_good.tolist(), strict=True
            )
            if not (loss_good and (norm_good or self._tolerant))
        }

    def _merge(
        self, steps: list[int], parts: list[tuple[dict[str, tuple[float, int]], dict[int, list[int]]]]
    ) -> Window:
        window = Window()
        for name in parts[0][0]:
            total, count = (sum(values) for values in zip(*(sums[name] for sums, _ in parts), strict=True))
            window.means[name] = total / count if count else math.nan
        for step in steps:
            images = [image for _, bad in parts for image in bad.get(step, [])]
            if any(step in bad for _, bad in parts):
                window.bad.append(BadStep(step, images))
                self._in_a_row += 1
                window.bad_in_a_row = max(window.bad_in_a_row, self._in_a_row)
            else:
                self._in_a_row = 0
        self._judge(window)
        return window

    def _judge(self, window: Window) -> None:
        loss = window.means["loss"]
        usual = median(self._losses) if len(self._losses) >= RECENT // 4 else 0.0
        if 0 < SPIKE * usual < loss:  # below zero, as a reward makes it, times say nothing
            window.spike = loss / usual
        if math.isfinite(loss):
            self._losses.append(loss)


def _finite_sum(values: list[Tensor]) -> tuple[float, int]:
    """Sum and number of the finite ones."""
    stacked = torch.stack([value.float() for value in values])
    finite = torch.isfinite(stacked)
    return float(torch.where(finite, stacked, 0.0).sum()), int(finite.sum())
