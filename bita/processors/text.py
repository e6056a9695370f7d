"""Text processors: what a caption looks like before it is tokenized."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import torch

_PUNCTUATION = re.compile(r'[.!"()*#:;~]')
_WHITE_RUN = re.compile(r"\s{2,}")
JOINTS = ("space", "glued")
SLOT = "{caption}"


@lru_cache(2**17)  # captions come again in every epoch
def clean_caption(caption: str, max_words: int = 50) -> str:
    """Return `caption` in lower case, without the published punctuation, cut to `max_words` words.

    Each of `.!"()*#:;~` becomes a space and a run of two or more white-space characters one space; a lone
    tab or newline stays. Trailing newlines, then spaces at both ends, go. A word ends at a space.
    """
    text = _PUNCTUATION.sub(" ", caption.lower())
    text = _WHITE_RUN.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


class TextProcessor:
    """A caption after the prompt; one of your own extends it and is registered (docs/extending.md).

    Args:
        prompt: text in front of every caption, as it is; "" for none.
        joint: `space` puts one space between prompt and caption, `glued` nothing (for old weights).
    """

    def __init__(self, prompt: str = "", joint: str = "space") -> None:
        if joint not in JOINTS:
            raise ValueError(f"joint must be one of {', '.join(JOINTS)}, not {joint!r}")
        self.prompt, self.joint = prompt, joint

    def __call__(self, caption: str) -> str:
        """Return a caption as evaluation has it."""
        return self.prompted(caption)

    def draw(self, caption: str, generator: torch.Generator) -> str:
        """Return a caption as training has it; what is random comes from `generator`."""
        return self(caption)

    def prompted(self, text: str) -> str:
        """Return a text with the prompt in front."""
        if not self.prompt or self.joint == "glued" or self.prompt[-1].isspace():
            return self.prompt + text
        return f"{self.prompt} {text}"


class CaptionProcessor(TextProcessor):
    """The published one: clean a caption and put the prompt in front of it; the prompt does not count as words.

    Args:
        prompt: see `TextProcessor`, and `joint`.
        max_words: words of the caption that are kept.
        templates: what a cleaned caption is put into, each with `{caption}` in it, such as "a satellite photo of
            {caption}"; in training one is drawn for every caption, in evaluation it is the first.
    """

    def __init__(
        self,
        prompt: str = "",
        max_words: int = 50,
        joint: str = "space",
        templates: Sequence[str] = (SLOT,),
    ) -> None:
        super().__init__(prompt, joint)
        wrong = [template for template in templates if SLOT not in template]
        if wrong or not templates:
            raise ValueError(f"templates: wanted texts with {SLOT} in them, not {wrong or templates!r}")
        self.max_words = max_words
        self.templates = list(templates)

    def __call__(self, caption: str) -> str:
        """See `TextProcessor`; in the first template."""
        return self._fill(self.templates[0], caption)

    def draw(self, caption: str, generator: torch.Generator) -> str:
        """See `TextProcessor.draw`; in a template that is drawn."""
        if len(self.templates) == 1:
            return self(caption)
        return self._fill(
            self.templates[int(torch.randint(len(self.templates), (), generator=generator))], caption
        )

    def _fill(self, template: str, caption: str) -> str:
        return self.prompted(template.replace(SLOT, clean_caption(caption, self.max_words)))
