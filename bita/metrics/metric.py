"""What a metric is: references and hypotheses → values. One of your own is one class (docs/extending.md)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from bita.metrics.references import ReferenceSet
from bita.metrics.scores import Measured
from bita.records import Id


class Hypotheses(dict[Id, str]):
    """Image id → tokenized caption, in the order of the references' ids.

    Attributes:
        given: image id → caption as it was written.
        images: image id → file, of the images whose files are known.
    """

    def __init__(
        self, tokens: Mapping[Id, str], given: Mapping[Id, str], images: Mapping[Id, Path] | None = None
    ) -> None:
        super().__init__(tokens)
        self.given, self.images = given, images or {}


class Metric(ABC):
    """A metric, registered by name (`bita.registry.metrics`).

    Args:
        config: its own keys, of its `Config`, which extends `MetricConfig`.

    Attributes:
        beside: whether it waits for another process, so that the other metrics are computed meanwhile.
    """

    beside: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        self.config = config

    def missing(self) -> str | None:
        """Return why it cannot be computed here, and what would let it; None where it can."""
        return None

    @abstractmethod
    def __call__(self, references: ReferenceSet, hypotheses: Hypotheses) -> Measured:
        """Return the values of a set. Whatever it raises leaves it out with a note; a `UserError` ends the scoring."""

    def close(self) -> None:  # noqa: B027 — most have nothing to end
        """End what it started; the next call starts it again."""
