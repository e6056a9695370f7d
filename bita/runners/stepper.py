"""One optimizer step: forward, backward, gradients checked and clipped, weights moved. Nothing waits for the device.

A loss or gradient that is not finite on any process makes all of them leave the step out together: such a loss
turns its process's gradients into NaN, averaging over processes spreads them, and the optimizer is told by a flag
on the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from bita.batch import Batch
from bita.config.run import RunConfig
from bita.errors import ConfigError
from bita.precision import amp_dtype, autocast
from bita.runners.optim import SCALE, build_optimizer
from bita.runners.parallel import cut_like, exchange, split, total_norm, wrap
from bita.tasks.base import Task


class Stepper:
    """Model, optimizer and scaler of a run.

    Args:
        model: on its device.
        task: gives the loss of a batch.
        run: optimizer, clipping and precision keys.
        device: where the model is.
    """

    def __init__(self, model: nn.Module, task: Task, run: RunConfig, device: torch.device) -> None:
        self.task, self.run, self.device = task, run, device
        self.net = wrap(model, device)
        self.optimizer = build_optimizer(model, run)
        self.scaler = GradScaler(device.type, enabled=amp_dtype(device, run.amp) is torch.float16)
        self.rate = 0.0
        self.trained = [p for p in model.parameters() if p.requires_grad]
        if self.scaler.is_enabled() and len(split(self.trained)) > 1:
            raise ConfigError(
                "run.parallel: fsdp trains a language model in bfloat16 or float32, and this GPU has no bfloat16; set "
                "run.amp=false, or model.freeze_lm=true"
            )

    def accumulate(self, batch: Batch, *, share: float, last: bool) -> dict[str, Tensor]:
        """Forward and backward of one batch, whose gradients count with `share`; the batch's scalars, detached.

        `last` says that `optimizer_step` comes next: only then do processes exchange gradients.
        """
        with exchange(self.net, wanted=last):
            with autocast(self.device, self.run.amp):
                output = self.task.train_step(self.net, batch)
            loss = output["loss"].float()
            weight = torch.where(torch.isfinite(loss.detach()), share, math.nan)
            self.scaler.scale(loss * weight).backward()
        return {name: value.detach() for name, value in output.items()}

    def optimizer_step(self, rate: float) -> Tensor:
        """Let the optimizer step at learning rate `rate`; the norm of all gradients, not finite when left out."""
        self.rate = rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get(SCALE, 1.0)
        self.scaler.unscale_(self.optimizer)
        norm = total_norm(p.grad for p in self.trained if p.grad is not None)
        if self.run.clip_grad_norm:
            for part in split(self.trained):
                torch.nn.utils.clip_grads_with_norm_(part, self.run.clip_grad_norm, norm)
        if not self.scaler.is_enabled():
            self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Any]:
        """Optimizer and scaler, as plain data and tensors."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            ValueError: it is of other weights.
        """
        optimizer = dict(state["optimizer"])
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, entry in optimizer["state"].items():
            if any(value.ndim and value.shape != weights[number].shape for value in entry.values()):
                raise ValueError("the weights have other shapes")
        optimizer["state"] = {
            number: {
                name: cut_like(value, weights[number]) if value.ndim else value
                for name, value in entry.items()
            }
            for number, entry in optimizer["state"].items()
        }
        self.optimizer.load_state_dict(optimizer)
        self.scaler.load_state_dict(state["scaler"])
