"""AdamW with the published parameter groups, and the learning-rate schedules.

A step is one batch of the train loader. With gradient accumulation the optimizer moves once in several
steps, at the rate of the last of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from bita.config.run import RunConfig
from bita.errors import ConfigError
from bita.runners.parallel import split

BETA1 = 0.9
ENCODER = "visual_encoder."
SCALE = "scale"
"""Key of a parameter group: what its rate is of the schedule's."""


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Return whether weight decay applies: not to vectors and scalars, nor to biases and norms."""
    return parameter.ndim >= 2 and not any(part in name for part in ("bias", "ln", "bn"))


def build_optimizer(model: nn.Module, run: RunConfig) -> torch.optim.AdamW:
    """AdamW over the trained weights in two groups, with and without weight decay (four, where some are cut up).

    A vision encoder with a rate of its own (`run.vit_lr_scale`) has groups of its own.

    The fused implementation is used on every device: it can leave out a step on the device itself when its
    `found_inf` attribute says so, and nothing waits for the answer.

    Raises:
        ConfigError: nothing is trained.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise ConfigError("model: every part is frozen, so there is nothing to train")
    scales = {name: run.vit_lr_scale if name.startswith(ENCODER) else 1.0 for name, _ in trained}
    groups = [
        {"params": part, "weight_decay": run.weight_decay if decaying else 0.0, SCALE: scale}
        for scale in sorted(set(scales.values()), reverse=True)
        for decaying in (True, False)
        for part in split(p for name, p in trained if (scales[name], decays(name, p)) == (scale, decaying))
    ]
    return torch.optim.AdamW(groups, lr=run.init_lr, betas=(BETA1, run.beta2), fused=True)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A learning rate for every step of a run.

    Attributes:
        peak: the rate that warm-up climbs to (`run.init_lr`).
        floor: the rate that is never undercut after warm-up (`run.min_lr`).
        start: the rate of the first step (`run.warmup_lr`).
        warmup_steps: steps from `start` to `peak`.
        epochs: length of the run.
        steps_per_epoch: steps in each epoch.
        decay_rate: factor an epoch, for the schedule that has one.
        args: own keys (`run.lr_sched_args`).
    """

    peak: float
    floor: float
    start: float
    warmup_steps: int
    epochs: int
    steps_per_epoch: int
    decay_rate: float | None = None
    args: Any = None

    @classmethod
    def from_run(cls, run: RunConfig, steps_per_epoch: int) -> Self:
        """Return the schedule that a run's keys describe."""
        return cls(
            peak=run.init_lr,
            floor=run.min_lr,
            start=run.warmup_lr,
            warmup_steps=run.warmup_steps,
            epochs=run.max_epoch,
            steps_per_epoch=steps_per_epoch,
            decay_rate=run.lr_decay_rate,
            args=run.lr_sched_args,
        )

    def lr_at(self, epoch: int, step: int) -> float:
        """Return the rate of step `step` (from 0, within the epoch) of epoch `epoch` (from 0)."""
        raise NotImplementedError

    def warmup(self, step: int) -> float:
        """Return a straight line from `start` at step 0 to `peak` at `warmup_steps`, then `peak`."""
        return min(self.peak, self.start + (self.peak - self.start) * step / max(self.warmup_steps, 1))


class LinearWarmupCosine(Schedule):
    """Published: warm-up by step inside the first epoch only, then a cosine that moves once an epoch."""

    def lr_at(self, epoch: int, step: int) -> float:
        """See the class; a warm-up longer than the first epoch is cut off there."""
        if epoch == 0:
            return self.warmup(step)
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


@dataclass(frozen=True, kw_only=True)
class LinearWarmupStep(Schedule):
    """Published: the same warm-up, then the peak times `decay_rate` for every epoch, not below the floor."""

    def __post_init__(self) -> None:
        if self.decay_rate is None:
            raise ConfigError("run.lr_decay_rate: linear_warmup_step_lr needs it, e.g. 0.9")

    def lr_at(self, epoch: int, step: int) -> float:
        """See the class."""
        if epoch == 0:
            return self.warmup(step)
        assert self.decay_rate is not None
        return max(self.floor, self.peak * self.decay_rate**epoch)


class LinearWarmupCosineByStep(Schedule):
    """Ours: warm-up over `warmup_steps` wherever epochs end, then a cosine by step that ends at the floor."""

    def lr_at(self, epoch: int, step: int) -> float:
        """See the class."""
        done = epoch * self.steps_per_epoch + step
        if done < self.warmup_steps:
            return self.warmup(done)
        rest = max(self.epochs * self.steps_per_epoch - self.warmup_steps, 1)
        share = min((done - self.warmup_steps) / rest, 1.0)
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * share))
