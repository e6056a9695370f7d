"""Names in configuration files → classes. A name is checked without importing what it stands for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from bita.errors import ConfigError

C = TypeVar("C", bound=type)


class Registry:
    """Classes of one kind by name.

    Args:
        kind: what they are, for messages: "model arch", "task", …
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._targets: dict[str, Any] = {}

    def register(self, name: str, target: str | None = None) -> Callable[[C], C]:
        """Register a class, as a decorator, or as "module:Class", which is imported when first asked for.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._targets:
            raise ValueError(f"{self.kind} {name!r} is registered already, as {self._targets[name]}")

        def put(cls: C) -> C:
            self._targets[name] = cls
            return cls

        if target is not None:
            self._targets[name] = target
        return put

    def get(self, name: str) -> Any:
        """The class of a name.

        Raises:
            ConfigError: unknown; the message has the nearest known name.
        """
        if name not in self._targets:
            near = difflib.get_close_matches(name, self._targets, n=1, cutoff=0.0)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{self.kind} {name!r} is unknown{hint}")
        target = self._targets[name]
        if isinstance(target, str):
            module, attribute = target.split(":")
            target = self._targets[name] = getattr(importlib.import_module(module), attribute)
        return target

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._targets)

    def __contains__(self, name: object) -> bool:
        return name in self._targets


models = Registry("model arch")
tasks = Registry("task")
runners = Registry("runner")
processors = Registry("processor")
schedules = Registry("schedule")

models.register("bita_former", "bita.models.bita_itc:BitaITC")
models.register("bita_opt", "bita.models.bita_lm:BitaLM")
tasks.register("image_text_pretrain", "bita.tasks.pretrain:PretrainTask")
tasks.register("captioning", "bita.tasks.captioning:CaptioningTask")
runners.register("runner_base", "bita.runners.epoch_runner:EpochRunner")
processors.register("bita_image_train", "bita.processors.image:TrainImageProcessor")
processors.register("bita_image_eval", "bita.processors.image:EvalImageProcessor")
processors.register("bita_caption", "bita.processors.text:CaptionProcessor")
schedules.register("linear_warmup_cosine_lr", "bita.runners.optim:LinearWarmupCosine")
schedules.register("linear_warmup_step_lr", "bita.runners.optim:LinearWarmupStep")
schedules.register("linear_warmup_cosine_by_step_lr", "bita.runners.optim:LinearWarmupCosineByStep")
