"""What a score was made with, so that two scores can be told to be comparable."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import version
from typing import Any

from bita.files import sha256
from bita.metrics import meteor, tokenizer
from bita.metrics.java import Java, jar_folder
from bita.metrics.references import ReferenceSet

_sha256 = cache(sha256)
METRICS = {
    "Bleu": "BLEU-1 to 4, closest reference length, over the whole set (per image: smoothed by 1e-15)",
    "METEOR": "METEOR 1.5, English, -norm, all references",
    "ROUGE_L": "ROUGE-L, beta 1.2, best reference",
    "CIDEr": "CIDEr-D (n 1 to 4, sigma 6, times 10), document frequencies from these references",
}


def provenance(java: Java, references: ReferenceSet) -> dict[str, Any]:
    """Versions, hashes and counts of one scoring.

    Args:
        java: which ran the jars.
        references: what was scored against.
    """
    folder = jar_folder()
    return {
        "pycocoevalcap": version("pycocoevalcap"),
        "metrics": dict(METRICS),
        "tokenizer": tokenizer.NAME,
        "jars": {
            meteor.JAR: _sha256(folder / "meteor" / meteor.JAR),
            "paraphrase-en.gz": _sha256(folder / "meteor" / "data" / "paraphrase-en.gz"),
            tokenizer.JAR: _sha256(folder / "tokenizer" / tokenizer.JAR),
        },
        "java": f"{java.version} ({java.source})",
        "references": references.digest,
        "images": len(references.ids),
        "captions": references.captions,
        "command": list(sys.argv),
    }
