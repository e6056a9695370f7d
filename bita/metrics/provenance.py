"""What a score was made with, so that two scores can be told to be comparable."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from bita.metrics import meteor, tokenizer
from bita.metrics.java import Java, jar_folder, sha256

METRICS = {
    "Bleu": "BLEU-1 to 4, closest reference length, over the whole set (per image: smoothed by 1e-15)",
    "METEOR": "METEOR 1.5, English, -norm, all references",
    "ROUGE_L": "ROUGE-L, beta 1.2, best reference",
    "CIDEr": "CIDEr-D (n 1 to 4, sigma 6, times 10), document frequencies from these references",
}


def references_hash(references: Mapping[int, Sequence[str]]) -> str:
    """sha256 over ids and captions, ids ascending, captions of an image in their order."""
    content = [[image_id, list(references[image_id])] for image_id in sorted(references)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def provenance(java: Java, references: Mapping[int, Sequence[str]], digest: str) -> dict[str, Any]:
    """Versions, hashes and counts of one scoring.

    Args:
        java: which ran the jars.
        references: image id → captions.
        digest: their hash.
    """
    folder = jar_folder()
    return {
        "pycocoevalcap": version("pycocoevalcap"),
        "metrics": dict(METRICS),
        "tokenizer": tokenizer.NAME,
        "jars": {
            meteor.JAR: sha256(folder / "meteor" / meteor.JAR),
            "paraphrase-en.gz": sha256(folder / "meteor" / "data" / "paraphrase-en.gz"),
            tokenizer.JAR: sha256(folder / "tokenizer" / tokenizer.JAR),
        },
        "java": f"{java.version} ({java.source})",
        "references": digest,
        "images": len(references),
        "captions": sum(len(captions) for captions in references.values()),
        "command": list(sys.argv),
    }
