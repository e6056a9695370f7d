"""SPICE, which needs two files that no package registry has; without them it is not computed, and that is said."""

from __future__ import annotations

from pathlib import Path

JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
SOURCE = "stanford-corenlp-full-2015-12-09.zip of the Stanford NLP group"


def missing_note(folder: Path | None) -> str | None:
    """Why SPICE cannot run, and what would let it; None when both files are in the folder."""
    if folder is None:
        return f"SPICE: not computed; it needs {' and '.join(JARS)} (from {SOURCE}) in the folder given as spice_dir"
    missing = [name for name in JARS if not (folder / name).is_file()]
    if not missing:
        return None
    return f"SPICE: not computed; {' and '.join(missing)} (from {SOURCE}) not in {folder}"
