"""Does a caption invent? Things, and numbers of things, that it names and none of the image's references does.

In the manner of CHAIR (Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018), whose annotated
objects are here what the references name. The words are data: `things.yaml` beside this file, or a file of one's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from bita.config.parts import InventedConfig
from bita.errors import UserError
from bita.metrics.metric import Hypotheses, Metric
from bita.metrics.references import ReferenceSet
from bita.metrics.scores import Measured
from bita.records import Id

WORDS = Path(__file__).with_name("things.yaml")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
REACH = 3
"""A number counts a thing that is named at most so many words after it: "two large white planes"."""
ENDS = re.compile(
    r"\b(?:an?|the|some|many|several|of|by|in|on|at|with|to|for|from|into|near|beside|is|are)\b"
)
"""Words that no number reaches across: "two rows of trees" are not two trees."""


@dataclass(frozen=True)
class Named:
    """What a caption names.

    Attributes:
        things: in the order of the words, as often as they come.
        counts: (thing, number) where a number word stands before it.
    """

    things: list[str]
    counts: list[tuple[str, int]]


@dataclass(frozen=True)
class Invented:
    """What the captions of a split invent.

    Attributes:
        captions: share of the captions that invent a thing or a number (CHAIR's per-sentence value).
        things: share of the named things that are invented (CHAIR's per-instance value).
        counts: share of the counted things whose number is invented, of those that a reference counts too.
        examples: image id → what its caption invents, such as "river" or "three airplane".
        of_images: image id → how many of the things that its caption names are invented, and how many it names.
    """

    captions: float
    things: float
    counts: float
    examples: dict[Id, list[str]]
    of_images: dict[Id, tuple[int, int]]


class Vocabulary:
    """Things and the words for them.

    Args:
        path: a YAML file with `things`, thing → forms, `unjudged`, lists of forms, and `includes`, thing → things.

    Attributes:
        includes: thing → things that go without saying where it is named.

    Raises:
        UserError: the file is not of that kind, or a form stands for two things.
    """

    def __init__(self, path: Path = WORDS) -> None:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            forms = [(form, thing) for thing, forms in content["things"].items() for form in forms]
            forms += [(form, "") for group in content.get("unjudged") or [] for form in group]
            self.includes = {thing: list(others) for thing, others in (content.get("includes") or {}).items()}
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: wanted YAML with things: {{thing: [form, …]}} ({type(error).__name__})"
            ) from error
        self._thing: dict[str, str] = {}
        for form, thing in forms:
            if self._thing.setdefault(form, thing) != thing:
                raise UserError(f"{path}: {form!r} stands for {thing!r} and for {self._thing[form]!r}")
        for thing in {*self.includes, *(other for others in self.includes.values() for other in others)}:
            if thing not in content["things"]:
                raise UserError(f"{path}: includes: {thing!r} is none of the things")
        longest_first = sorted(self._thing, key=len, reverse=True)
        self._pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, longest_first))})(?![\w-])")

    def named(self, caption: str) -> Named:
        """Return the things that a caption names, and how many of each it says there are."""
        text = " ".join(caption.lower().split())
        found = [(match.start(), self._thing[match[0]]) for match in self._pattern.finditer(text)]
        counts = []
        for match in re.finditer(rf"\b({'|'.join(NUMBERS)})\b", text):
            after = [(place, thing) for place, thing in found if place > match.end()]
            between = text[match.end() : after[0][0]] if after else ""
            if after and after[0][1] and len(between.split()) <= REACH and not ENDS.search(between):
                counts.append((after[0][1], NUMBERS.index(match[0]) + 1))
        return Named([thing for _, thing in found if thing], counts)


def invented(
    references: Mapping[Id, Sequence[str]], hypotheses: Mapping[Id, str], vocabulary: Vocabulary
) -> Invented:
    """Return what captions name that none of their image's references does.

    A number is judged where a reference counts the thing: it is invented where none gives that number.

    Args:
        references: image id → captions.
        hypotheses: image id → caption.
        vocabulary: the words.
    """
    examples: dict[Id, list[str]] = {}
    of_images: dict[Id, tuple[int, int]] = {}
    counts = wrong_counts = 0
    for image_id, hypothesis in hypotheses.items():
        own = vocabulary.named(hypothesis)
        seen = [vocabulary.named(reference) for reference in references[image_id]]
        known = {thing for named in seen for thing in named.things}
        known |= {other for thing in known for other in vocabulary.includes.get(thing, ())}
        counted = {pair for named in seen for pair in named.counts}
        new = [thing for thing in own.things if thing not in known]
        judged = [pair for pair in own.counts if any(pair[0] == thing for thing, _ in counted)]
        odd = [f"{NUMBERS[number - 1]} {thing}" for thing, number in judged if (thing, number) not in counted]
        of_images[image_id] = len(new), len(own.things)
        counts, wrong_counts = counts + len(judged), wrong_counts + len(odd)
        if new or odd:
            examples[image_id] = [*dict.fromkeys(new), *odd]
    wrong, things = (sum(of_image[k] for of_image in of_images.values()) for k in (0, 1))
    return Invented(
        captions=len(examples) / max(len(hypotheses), 1),
        things=wrong / max(things, 1),
        counts=wrong_counts / max(counts, 1),
        examples=examples,
        of_images=of_images,
    )


class InventedMetric(Metric):
    """What captions invent; lower is better.

    `invented`: the share of captions that invent a thing or a number, 1 or 0 for each image. `invented_words`: of the
    things that are named, the share that is invented.
    """

    def __init__(self, config: InventedConfig) -> None:
        super().__init__(config)
        self.vocabulary = Vocabulary(Path(config.words) if config.words else WORDS)

    def __call__(self, references: ReferenceSet, hypotheses: Hypotheses) -> Measured:
        """See `Metric.__call__`."""
        found = invented(references.tokens, hypotheses, self.vocabulary)
        captions = [float(image_id in found.examples) for image_id in hypotheses]
        things = np.array([found.of_images[image_id] for image_id in hypotheses], np.float64)
        shares = things[:, 0] / things[:, 1].clip(min=1)
        return Measured(
            {"invented": (found.captions, captions), "invented_words": (found.things, shares.tolist())},
            {"invented": np.stack([captions, np.ones(len(captions))], axis=1), "invented_words": things},
        )
