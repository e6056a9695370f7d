"""Caption text processor of the published system: what a caption looks like before it is tokenized."""

from __future__ import annotations

import re

_PUNCTUATION = re.compile(r'[.!"()*#:;~]')
_WHITE_RUN = re.compile(r"\s{2,}")
JOINTS = ("space", "glued")


def clean_caption(caption: str, max_words: int = 50) -> str:
    """Return ``caption`` in lower case, without the published punctuation, cut to ``max_words`` words.

    Each of ``.!"()*#:;~`` becomes a space and a run of two or more white-space characters one space; a lone
    tab or newline stays. Trailing newlines, then spaces at both ends, go. A word ends at a space.
    """
    text = _PUNCTUATION.sub(" ", caption.lower())
    text = _WHITE_RUN.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


class CaptionProcessor:
    """Clean a caption and put the prompt in front of it; the prompt does not count as words.

    Args:
        prompt: Text in front of every caption, as it is; "" for none.
        max_words: Words of the caption that are kept.
        joint: ``space`` puts one space between prompt and caption, ``glued`` nothing (for old weights).
    """

    def __init__(self, prompt: str = "", max_words: int = 50, joint: str = "space") -> None:
        if joint not in JOINTS:
            raise ValueError(f"joint must be one of {', '.join(JOINTS)}, not {joint!r}")
        self.prompt = prompt
        self.max_words = max_words
        self.joint = joint

    def __call__(self, caption: str) -> str:
        """Return the processed caption with the prompt in front."""
        text = clean_caption(caption, self.max_words)
        if not self.prompt or self.joint == "glued" or self.prompt[-1].isspace():
            return self.prompt + text
        return f"{self.prompt} {text}"
