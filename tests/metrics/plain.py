"""pycocoevalcap called directly, in a process of its own: `python plain.py SETS SCORES`.

SETS: JSON, `{"references": {id: [caption]}, "hypotheses": {name: {id: caption}}}`; SCORES gets for each name
`{"overall": {metric: value}, "per_image": {metric: [value, …]}, "seconds": …}`, images in
ascending order of their ids. METEOR is started once, and its start is counted in the first set's seconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer


def plain_scores(
    references: dict[int, list[str]], hypotheses: dict[int, str], make_meteor: Callable[[], Meteor]
) -> dict[str, Any]:
    """Every scorer as `COCOEvalCap.evaluate` calls it, SPICE left out."""
    start = time.perf_counter()
    gts = {n: [{"caption": text} for text in references[n]] for n in sorted(references)}
    res = {n: [{"caption": hypotheses[n]}] for n in sorted(references)}
    gts, res = PTBTokenizer().tokenize(gts), PTBTokenizer().tokenize(res)
    overall: dict[str, float] = {}
    per_image: dict[str, list[float]] = {}
    for name, scorer in {"METEOR": make_meteor(), "ROUGE_L": Rouge(), "CIDEr": Cider()}.items():
        whole, each = scorer.compute_score(gts, res)
        overall[name], per_image[name] = float(whole), list(map(float, each))
    whole, each = Bleu(4).compute_score(gts, res, verbose=0)
    for n in range(4):
        overall[f"Bleu_{n + 1}"], per_image[f"Bleu_{n + 1}"] = whole[n], list(each[n])
    return {"overall": overall, "per_image": per_image, "seconds": time.perf_counter() - start}


def main() -> None:
    """Score every set of hypotheses."""
    sets = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    references = {int(n): texts for n, texts in sets["references"].items()}
    make_meteor = cache(Meteor)
    scores = {
        name: plain_scores(references, {int(n): text for n, text in hypotheses.items()}, make_meteor)
        for name, hypotheses in sets["hypotheses"].items()
    }
    Path(sys.argv[2]).write_text(json.dumps(scores), encoding="utf-8")


if __name__ == "__main__":
    main()
