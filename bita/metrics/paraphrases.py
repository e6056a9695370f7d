"""METEOR's paraphrase table, cut down to what one set of references can meet.

METEOR loads 5.3 million paraphrases at every start. A paraphrase can only count in a score when one of its two sides
stands in a reference, so the others can go: the scores are the same, the start takes a tenth of the time. The cutting
is done by the tool that METEOR's jar brings, which looks at references without punctuation; the table has no
punctuation either, so nothing that could match is lost, as long as the references keep to the letters below.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from bita.metrics.java import Java, jar_folder, run_java

TIMEOUT = 300.0
_SAFE = re.compile(r"[\x00-\x7fÀ-ÖØ-öø-ž]*")


def full_table() -> Path:
    """Return the whole table, as pycocoevalcap brings it."""
    return jar_folder() / "meteor" / "data" / "paraphrase-en.gz"


def cut_table(java: Java, references: Iterable[str], folder: Path) -> Path:
    """Return a table that gives these references the same scores as the full one.

    Args:
        java: which Java runs the tool.
        references: tokenized captions.
        folder: gets the table, whose name does not matter.

    Returns:
        The new file, or the full table where cutting is not safe or did not work.
    """
    lines = sorted(set(references))
    if not all(_SAFE.fullmatch(line) for line in lines):
        return full_table()
    source, table = folder / "references.txt", folder / "paraphrases.gz"
    source.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    jar = jar_folder() / "meteor" / "meteor-1.5.jar"
    command = [
        *java.base("512m"),
        "-cp",
        str(jar),
        "FilterParaphrase",
        str(full_table()),
        str(table),
        str(source),
    ]
    try:
        answer = run_java(command, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return full_table()
    return table if answer.returncode == 0 and table.is_file() else full_table()
