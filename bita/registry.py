"""Names in configuration files → parts. A name is checked without importing what it stands for.

A part of your own joins by a decorator, in a module that the project file names under `imports`, and owns the keys of
its `Config`, a keyword-only dataclass (docs/extending.md):

    @bridges.register("my_bridge")
    class MyBridge(Bridge):
        @dataclass(kw_only=True)
        class Config(BridgeSize):
            my_key: float = key(0.5, at_least=0, below=1)
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from bita.errors import ConfigError

C = TypeVar("C", bound=type)
FREE = dict
"""The `Config` of parts whose keys are another library's, which checks them itself."""
CONFIGS = "bita.config.parts"


@dataclasses.dataclass(kw_only=True)
class NoKeys:
    """The `Config` of parts without keys of their own."""


class Registry:
    """Parts of one kind by name.

    A name `PREFIX:REST` stands for the part `PREFIX:NAME`, where there is one: `timm:resnet18`.

    Args:
        kind: what they are, for messages: "model arch", "task", …
        built_in: name → "package.module:Class", imported when first asked for; or that and its `Config`, which then is
            found without importing the class: its name in `bita.config.parts`, or itself.
        keys: the name of the dataclass in `bita.config.parts` that every `Config` extends; None: any dataclass.
    """

    def __init__(
        self,
        kind: str,
        built_in: Mapping[str, str | tuple[str, str | type[Any]]] | None = None,
        *,
        keys: str | None = None,
    ) -> None:
        self.kind = kind
        self.keys = keys
        self._targets: dict[str, type[Any] | str] = {}
        self._configs: dict[str, type[Any] | str] = {}
        for name, part in (built_in or {}).items():
            self._targets[name] = part if isinstance(part, str) else part[0]
            if not isinstance(part, str):
                self._configs[name] = part[1]

    def register(self, name: str) -> Callable[[C], C]:
        """Return a class decorator that registers under `name`.

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
        """Return the class of a name.

        Raises:
            ConfigError: unknown; the message has the nearest known name.
        """
        name = self._known(name)
        target = self._targets[name]
        if isinstance(target, str):
            target = self._targets[name] = _imported(target)
        return target

    def config(self, name: str) -> type[Any]:
        """Return the dataclass of a part's own keys; `FREE` where they are another library's.

        Raises:
            ConfigError: the name is unknown, or its `Config` is none.
        """
        name = self._known(name)
        config = self._configs.get(name)
        if config is None:
            config = getattr(self.get(name), "Config", self._shared() or NoKeys)
        elif isinstance(config, str):
            config = _imported(f"{CONFIGS}:{config}")
        if config is not FREE and not (
            isinstance(config, type)
            and dataclasses.is_dataclass(config)
            and issubclass(config, self._shared() or object)
        ):
            extends = f" that extends {self.keys}" if self.keys else ""
            raise ConfigError(f"{self.kind} {name!r}: its Config must be a dataclass{extends}")
        self._configs[name] = config
        return config

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._targets)

    def __iter__(self) -> Iterator[str]:
        """Return all names, in the order in which they were registered."""
        return iter(self._targets)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._entry(name) in self._targets

    def _shared(self) -> type[Any] | None:
        return None if self.keys is None else _imported(f"{CONFIGS}:{self.keys}")

    def _entry(self, name: str) -> str:
        prefix, colon, _ = name.partition(":")
        return f"{prefix}:NAME" if colon else name

    def _known(self, name: str) -> str:
        if name not in self:
            hint = f"; {nearest(name, self._targets)}" if self._targets else ""
            raise ConfigError(f"{self.kind} {name!r} is unknown{hint}")
        return self._entry(name)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is meant, as a question."""
    spelled = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.0)
    return f"did you mean {spelled[near[0]]!r}?" if near else "there are none"


def _imported(target: str) -> type[Any]:
    module, attribute = target.split(":")
    found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found


models = Registry(
    "model arch",
    {
        "bita_former": ("bita.models.bita_itc:BitaITC", "FormerConfig"),
        "bita_opt": ("bita.models.bita_lm:BitaLM", "CaptionerConfig"),
    },
    keys="ArchConfig",
)
encoders = Registry(
    "vision encoder",
    dict.fromkeys(("clip_L", "eva_clip_g", "timm:NAME"), ("bita.models.vision:TimmEncoder", FREE)),
)
bridges = Registry(
    "bridge",
    {
        "ift": ("bita.models.ift:IFT", "IFTSize"),
        "qformer": ("bita.models.qformer:QFormer", "QFormerSize"),
    },
    keys="BridgeConfig",
)
decoders = Registry(
    "decoder", {"transformers": ("bita.models.language.language_model:TransformersDecoder", NoKeys)}
)
losses = Registry(
    "stage-1 loss",
    {
        "itc": ("bita.models.bita_itc:Contrast", NoKeys),
        "itm": ("bita.models.bita_itc:Matching", NoKeys),
        "itg": ("bita.models.bita_itc:Writing", NoKeys),
    },
)
tasks = Registry(
    "task",
    {
        "image_text_pretrain": ("bita.tasks.pretrain:PretrainTask", "PretrainConfig"),
        "captioning": ("bita.tasks.captioning:CaptioningTask", "CaptioningConfig"),
        "captioning_scst": ("bita.tasks.scst:ScstTask", "ScstConfig"),
    },
    keys="TaskConfig",
)
runners = Registry("runner", {"runner_base": ("bita.runners.epoch_runner:EpochRunner", NoKeys)})
processors = Registry(
    "processor",
    {
        "bita_image_train": ("bita.processors.image:TrainImageProcessor", "TrainImageConfig"),
        "bita_image_eval": ("bita.processors.image:EvalImageProcessor", "ImageConfig"),
        "bita_caption": ("bita.processors.text:CaptionProcessor", "CaptionConfig"),
    },
    keys="ProcessorConfig",
)
schedules = Registry(
    "schedule",
    {
        "linear_warmup_cosine_lr": ("bita.runners.optim:LinearWarmupCosine", "ScheduleConfig"),
        "linear_warmup_step_lr": ("bita.runners.optim:LinearWarmupStep", "StepScheduleConfig"),
        "linear_warmup_cosine_by_step_lr": (
            "bita.runners.optim:LinearWarmupCosineByStep",
            "ScheduleConfig",
        ),
    },
    keys="ScheduleConfig",
)
metrics = Registry(
    "metric",
    {
        "Bleu": ("bita.metrics.scorers:Bleu", "BleuConfig"),
        "METEOR": ("bita.metrics.scorers:MeteorMetric", "MeteorConfig"),
        "ROUGE_L": ("bita.metrics.scorers:Rouge", "RougeConfig"),
        "CIDEr": ("bita.metrics.scorers:Cider", "CiderConfig"),
        "SPICE": ("bita.metrics.scorers:Spice", "SpiceConfig"),
        "diversity": ("bita.metrics.scorers:Diversity", "DiversityConfig"),
        "invented": ("bita.metrics.hallucination:InventedMetric", "InventedConfig"),
        "CLIPScore": ("bita.inference.clipscore:ClipMetric", "ClipConfig"),
    },
    keys="MetricConfig",
)
loggers = Registry(
    "logger",
    {
        "jsonl": ("bita.runners.loggers:JsonLines", NoKeys),
        "tensorboard": ("bita.runners.loggers:TensorBoard", NoKeys),
    },
)
