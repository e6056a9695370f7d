"""Score hypotheses against references from files; no model needed.

python -m bita.metrics REFERENCES HYPOTHESES [--json FILE] [--bootstrap 1000] [--versus OTHER]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bita.errors import UserError, program
from bita.metrics.diversity import novelty
from bita.metrics.files import Pairing, paired, read_hypotheses, read_images, read_references
from bita.metrics.scorers import CaptionScorer
from bita.metrics.scores import Scores
from bita.metrics.stats import by_class, intervals, paired_test
from bita.registry import metrics


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(
        prog="python -m bita.metrics", description="Score captions: BLEU, METEOR, ROUGE-L, CIDEr, SPICE."
    )
    parse.add_argument(
        "references", type=Path, help="COCO ground truth, or records {image_id, caption}, JSON(L)"
    )
    parse.add_argument(
        "hypotheses", type=Path, help="records {image_id, caption}, JSON or JSONL; one an image"
    )
    parse.add_argument("--json", type=Path, metavar="FILE", help="write overall and per-image scores here")
    parse.add_argument(
        "--bootstrap", type=int, default=0, metavar="N", help="95%% intervals from N drawn sets"
    )
    parse.add_argument(
        "--versus", type=Path, metavar="OTHER", help="other hypotheses: differences with p-values"
    )
    parse.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="JSON {image id: class}: scores of each class (default: as in REFERENCES)",
    )
    parse.add_argument(
        "--train", type=Path, metavar="FILE", help="training captions: share of captions not in it"
    )
    parse.add_argument(
        "--clip", metavar="RUN", help="a stage-1 run: CLIPScore and RefCLIPScore under its model"
    )
    parse.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="for --clip (default: images/ beside the folder of REFERENCES)",
    )
    parse.add_argument("--spice-dir", type=Path, metavar="DIR", help="folder with SPICE's two CoreNLP jars")
    parse.add_argument("--seed", type=int, default=0, help="of the drawn sets")
    return parse


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    args = parser().parse_args(argv)
    report(args)
    return 0


def report(args: argparse.Namespace) -> None:
    """Score, print, and write the file that was asked for.

    Raises:
        UserError: files or ids do not fit.
    """
    references = read_references(args.references)
    pairing = paired(references, read_hypotheses(args.hypotheses))
    with CaptionScorer(spice_dir=args.spice_dir) as scorer:
        scores = scorer.score(pairing.references, pairing.hypotheses)
        if args.clip is not None:
            _add_clip_scores(args, scores, pairing)
        content = _named(scores, pairing)
        if args.train is not None:
            training = [text for texts in read_references(args.train).values() for text in texts]
            tokens = scorer.tokenizer.tokenize(pairing.hypotheses.values())
            content["diversity"]["novelty"] = novelty(tokens, scorer.tokenizer.tokenize(training))
        if args.versus is not None:
            other = paired(references, read_hypotheses(args.versus))
            versus = paired_test(
                scores, scorer.score(other.references, other.hypotheses), args.bootstrap or 1000, args.seed
            )
            content["versus"] = {name: vars(difference) for name, difference in versus.items()}
    if args.bootstrap:
        content["intervals"] = {
            name: vars(interval) for name, interval in intervals(scores, args.bootstrap, args.seed).items()
        }
    classes = _classes(args, pairing)
    if classes is not None:
        content["classes"] = by_class(scores, classes)
    _print(content)
    if args.json is not None:
        _write(args.json, content)


def _named(scores: Scores, pairing: Pairing) -> dict[str, Any]:
    """The scores for a file, under the ids of the files that were read."""
    content = scores.to_json()
    if pairing.names is not None:
        content["per_image"] = {pairing.names[n]: found for n, found in scores.per_image.items()}
    return content


def _classes(args: argparse.Namespace, pairing: Pairing) -> dict[int, str] | None:
    """Number → class: of the file that is named, else as the ground truth says of every image; None: not known."""
    names = pairing.names or {n: str(n) for n in pairing.references}
    if args.classes is None:
        entries = read_images(args.references)
        known = {str(name): entry["category"] for name, entry in entries.items() if entry.get("category")}
        if not names.keys() or not all(name in known for name in names.values()):
            return None
        return {n: str(known[name]) for n, name in names.items()}
    try:
        content = json.loads(args.classes.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{args.classes}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{args.classes}: not a JSON object of image id and class")
    return {n: str(content[name]) for n, name in names.items() if name in content}


def _add_clip_scores(args: argparse.Namespace, scores: Scores, pairing: Pairing) -> None:
    """Add CLIPScore, of the images that the ground truth names."""

    folder = args.images or args.references.resolve().parent.parent / "images"
    names = pairing.names or {n: str(n) for n in pairing.references}
    entries = {str(name): entry for name, entry in read_images(args.references).items()}
    images = {
        n: folder / entries[name]["file_name"]
        for n, name in names.items()
        if "file_name" in entries.get(name, {})
    }
    metrics.get("CLIPScore")(args.clip).add_to(scores, images, pairing.hypotheses, pairing.references)


def _print(content: Mapping[str, Any]) -> None:
    for name, value in content["overall"].items():
        bounds = content.get("intervals", {}).get(name)
        shown = f"  [{bounds['low']:.4f}, {bounds['high']:.4f}]" if bounds else ""
        print(f"{name:<10}{value:8.4f}{shown}")
    print(f"\n{content['provenance']['images']} images")
    for name, value in content["diversity"].items():
        print(f"{name:<14}{value:10.4f}")
    for name, found in content.get("versus", {}).items():
        print(
            f"{name:<10}{found['value']:+8.4f}  [{found['low']:+.4f}, {found['high']:+.4f}]  p = {found['p']:.4f}"
        )
    for name, found in content.get("classes", {}).items():
        chosen = "  ".join(
            f"{metric} {found[metric]:.3f}" for metric in ("Bleu_4", "CIDEr") if metric in found
        )
        print(f"{name:<24}{found['images']:5}  {chosen}")
    for note in content["notes"]:
        print(f"note: {note}")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    sys.exit(main())
