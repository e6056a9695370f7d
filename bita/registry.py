"""Names in configuration files → classes. A name is checked without importing what it stands for.

A class of your own joins by a decorator, in a module that the project file names under `imports`:

    @models.register("my_former")
    class MyFormer(BitaITC): …
"""

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
        built_in: name → "package.module:Class", imported when first asked for.
    """

    def __init__(self, kind: str, built_in: dict[str, str] | None = None) -> None:
        self.kind = kind
        self._targets: dict[str, type[Any] | str] = dict(built_in or {})

    def register(self, name: str) -> Callable[[C], C]:
        """A class decorator that registers under `name`.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._targets:
            raise ValueError(f"{self.kind} {name!r} is registered already, as {self._targets[name]}")

        def put(cls: C) -> C:
            self._targets[name] = cls
            return cls

        return put

    def get(self, name: str) -> type[Any]:
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


models = Registry(
    "model arch",
    {
        "bita_former": "bita.models.bita_itc:BitaITC",
        "bita_opt": "bita.models.bita_lm:BitaLM",
    },
)
tasks = Registry(
    "task",
    {
        "image_text_pretrain": "bita.tasks.pretrain:PretrainTask",
        "captioning": "bita.tasks.captioning:CaptioningTask",
    },
)
runners = Registry(
    "runner",
    {"runner_base": "bita.runners.epoch_runner:EpochRunner"},
)
processors = Registry(
    "processor",
    {
        "bita_image_train": "bita.processors.image:TrainImageProcessor",
        "bita_image_eval": "bita.processors.image:EvalImageProcessor",
        "bita_caption": "bita.processors.text:CaptionProcessor",
    },
)
schedules = Registry(
    "schedule",
    {
        "linear_warmup_cosine_lr": "bita.runners.optim:LinearWarmupCosine",
        "linear_warmup_step_lr": "bita.runners.optim:LinearWarmupStep",
        "linear_warmup_cosine_by_step_lr": "bita.runners.optim:LinearWarmupCosineByStep",
    },
)
metrics = Registry("metric", {"CLIPScore": "bita.clipscore:ClipScorer"})
