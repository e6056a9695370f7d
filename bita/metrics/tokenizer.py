"""Penn Treebank tokens, as pycocoevalcap makes them: Stanford's tokenizer, lower case, punctuation left out.

The jar is pycocoevalcap's. What is ours: its exit code and its number of lines are checked, no temporary file is
written, every caption is tokenized once, however often it comes, and Java is asked only where a caption has more in it
than plain words.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence

from bita.errors import UserError
from bita.metrics.java import Java, find_java, jar_folder, run_java

JAR = "stanford-corenlp-3.4.1.jar"
NAME = "PTB (Stanford CoreNLP 3.4.1), lower case, punctuation left out"
START_TIMEOUT = 120.0
CAPTIONS_A_SECOND = 500
_SPLIT = "cannot|gimme|gonna|gotta|lemme|wanna"
_WORD = rf"(?!(?:{_SPLIT})(?![a-z-]))[a-z]+(?:-[a-z]+)*"
PLAIN = re.compile(rf"({_WORD}(?: {_WORD})*)(?: \.)?", re.ASCII)
"""Captions, in lower case, whose tokens are their words: Stanford's tokenizer splits these six words and none of 73,000
others of an English dictionary."""


def clean(caption: str) -> str:
    """Return one line: every run of white space, line ends of any kind included, becomes one space; ends are stripped.

    Half of a surrogate pair, which no encoding can hold, becomes a question mark.
    """
    return " ".join(caption.split()).encode("utf-8", "replace").decode("utf-8")


class Tokenizer:
    """Tokenizes captions, and remembers them.

    Args:
        java: which Java; None looks for one at the first caption that is new.
    """

    def __init__(self, java: Java | None = None) -> None:
        self._java = java
        self._known: dict[str, str] = {"": ""}

    def tokenize(self, captions: Iterable[str]) -> list[str]:
        """Tokens of each caption, joined by single spaces; an empty string where nothing is left.

        Raises:
            UserError: there is no Java, or the tokenizer failed.
        """
        cleaned = [clean(caption) for caption in captions]
        new = list(dict.fromkeys(caption for caption in cleaned if caption not in self._known))
        if new:
            self._known.update(zip(new, self._tokens(new), strict=True))
        return [self._known[caption] for caption in cleaned]

    def _tokens(self, captions: Sequence[str]) -> list[str]:
        """Tokens of captions of one line each; the tokenizer is asked where they are not plain to see."""
        plain = {caption: PLAIN.fullmatch(caption.lower()) for caption in captions}
        asked = [caption for caption, match in plain.items() if match is None]
        answers = dict(zip(asked, self._run(asked), strict=True)) if asked else {}
        return [match[1] if (match := plain[caption]) else answers[caption] for caption in captions]

    def _run(self, captions: Sequence[str]) -> list[str]:
        from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

        java = self._java or find_java()
        lines = _tokenize_lines(java, captions)
        dropped = set(PUNCTUATIONS)
        return [" ".join(token for token in line.split(" ") if token not in dropped) for line in lines]


def _tokenize_lines(java: Java, captions: Sequence[str]) -> list[str]:
    """Run the tokenizer over captions of one line each.

    Raises:
        UserError: it failed, took too long, or answered with another number of lines.
    """
    count = len(captions)
    jar = jar_folder() / "tokenizer" / JAR
    command = [*java.base("1g"), "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    try:
        answer = run_java(
            [*command, "-preserveLines", "-lowerCase", "-encoding", "UTF-8"],
            timeout=START_TIMEOUT + count / CAPTIONS_A_SECOND,
            given="".join(f"{caption}\n" for caption in captions).encode("utf-8"),
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"the PTB tokenizer took over {error.timeout:.0f} s for {count} captions") from error
    except OSError as error:
        raise UserError(f"{java.command}: cannot be started ({error.strerror})") from error
    if answer.returncode != 0:
        words = answer.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        raise UserError(f"the PTB tokenizer failed, exit code {answer.returncode}: {words[0]}")
    lines = answer.stdout.decode("utf-8").split("\n")
    if lines.pop() != "" or len(lines) != count:
        raise UserError(f"the PTB tokenizer answered {count} captions with {len(lines)} lines")
    return [line.rstrip() for line in lines]
