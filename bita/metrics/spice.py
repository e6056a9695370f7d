"""SPICE, which needs two files that no package registry has; without them it is not computed, and that is said."""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bita.metrics.checks import named
from bita.metrics.java import Java, find_java, jar_folder, run_java
from bita.metrics.scores import Measured
from bita.records import Id

if TYPE_CHECKING:
    from bita.metrics.references import ReferenceSet

JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
SOURCE = "stanford-corenlp-full-2015-12-09.zip of the Stanford NLP group"
ENGINE = Path(__file__).parent / "spice_json" / "json-engine.jar"
OPENED = ("java.lang", "java.math", "java.net", "java.text", "java.util", "java.util.concurrent")
TIMEOUT = 3600.0


def missing_note(folder: Path | None) -> str | None:
    """Return why SPICE cannot run, and what would let it; None when both files are in the folder."""
    if folder is None:
        return f"SPICE: not computed; it needs {' and '.join(JARS)} (from {SOURCE}) in the folder given as spice_dir"
    missing = [name for name in JARS if not (folder / name).is_file()]
    if not missing:
        return None
    return f"SPICE: not computed; {' and '.join(missing)} (from {SOURCE}) not in {folder}"


def spice(folder: Path, refs: ReferenceSet, hyps: Mapping[Id, str]) -> Measured:
    """SPICE of the whole set and of each image; None where it gives no number, which the mean leaves out.

    Args:
        folder: has the two jars.
        refs: the references.
        hyps: image id → tokenized caption, in the order of `refs.ids`.

    Raises:
        RuntimeError: Java failed or took over `TIMEOUT` seconds, or its answer lacks an image.
    """
    numbers = {n: n if isinstance(n, int) else k for k, n in enumerate(hyps)}
    items = [{"image_id": numbers[n], "test": text, "refs": refs.tokens[n]} for n, text in hyps.items()]
    with tempfile.TemporaryDirectory(prefix="bita_spice_") as name:
        source, target = Path(name) / "captions.json", Path(name) / "scores.json"
        source.write_text(json.dumps(items), encoding="utf-8")
        command = _command(find_java(), folder, source, target)
        try:
            answer = run_java(command, timeout=TIMEOUT, cwd=name)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"Java took over {TIMEOUT:.0f} s for {len(items)} captions") from error
        if answer.returncode != 0 or not target.is_file():
            said = answer.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"Java's exit code {answer.returncode}: {said[-1]}")
        values = _read(json.loads(target.read_text(encoding="utf-8")), numbers)
    each = [value if math.isfinite(value) else None for value in values.values()]
    known = [value for value in each if value is not None]
    return Measured({"SPICE": (sum(known) / len(known) if known else math.nan, each)})


def _command(java: Java, folder: Path, source: Path, target: Path) -> list[str]:
    brought = jar_folder() / "spice"
    jars = [ENGINE, brought / "spice-1.0.jar", *sorted((brought / "lib").glob("*.jar"))]
    jars += [folder / name for name in JARS]
    command = java.base("8g")
    if not java.version.startswith("1."):
        command += [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED]
    command += ["-cp", os.pathsep.join(map(str, jars)), "edu.anu.spice.SpiceScorer", str(source)]
    return [*command, "-out", str(target), "-subset", "-silent"]


def _read(answer: list[dict[str, Any]], numbers: Mapping[Id, int]) -> dict[Id, float]:
    """Image id → F-score over all tuples, whatever the order of the answer; NaN where it has none.

    Raises:
        RuntimeError: an image is missing.
    """
    found = {int(item["image_id"]): item["scores"]["All"]["f"] for item in answer}
    missing = [image_id for image_id, number in numbers.items() if number not in found]
    if missing:
        raise RuntimeError(f"no answer for {named(missing, len(numbers), 'image')}")
    return {n: math.nan if found[k] is None else float(found[k]) for n, k in numbers.items()}
