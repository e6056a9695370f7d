"""Score hypotheses against references from files; no model needed.

python -m bita.metrics REFERENCES HYPOTHESES [--json FILE] [--bootstrap 1000] [--versus OTHER]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bita import registry
from bita.commands import at_least, command_line, program
from bita.config.keys import own_keys_of
from bita.config.layers import Layer, merge
from bita.config.options import read_options
from bita.config.plugins import import_modules, load_plugins
from bita.config.types import build
from bita.datasets.names import ImageFolder
from bita.errors import ConfigError
from bita.files import user_path, write_json
from bita.metrics.diversity import novelty
from bita.metrics.files import paired, read_hypotheses, read_images, read_references
from bita.metrics.scorers import USUAL, CaptionScorer
from bita.metrics.stats import by_class, intervals, paired_test
from bita.records import Id, read_object


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = command_line("Score captions: BLEU, METEOR, ROUGE-L, CIDEr, SPICE.")
    path = partial(parse.add_argument, type=user_path)
    path("references", help="COCO ground truth, or records {image_id, caption}, JSON(L)")
    path("hypotheses", help="records {image_id, caption}, JSON or JSONL; one an image")
    path("--json", metavar="FILE", help="write overall and per-image scores here")
    parse.add_argument(
        "--bootstrap", type=at_least(0), default=0, metavar="N", help="95%% intervals from N drawn sets"
    )
    path("--versus", metavar="OTHER", help="other hypotheses: differences with p-values")
    path(
        "--classes",
        metavar="FILE",
        help="JSON {image id: class}: scores of each class (default: as in REFERENCES)",
    )
    path("--train", metavar="FILE", help="training captions: share of captions not in it")
    parse.add_argument(
        "--metric",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "KEY=VALUE"),
        help="compute this instead of the usual metrics, with its own keys; may be given again",
    )
    parse.add_argument(
        "--imports", nargs="+", default=[], metavar="MODULE", help="modules that register metrics of your own"
    )
    parse.add_argument(
        "--clip", metavar="RUN", help="a stage-1 run: CLIPScore and RefCLIPScore under its model"
    )
    path(
        "--images",
        metavar="DIR",
        help="for --clip and CLIPScore (default: images/ beside the folder of REFERENCES)",
    )
    path("--spice-dir", metavar="DIR", help="folder with SPICE's two CoreNLP jars")
    parse.add_argument("--seed", type=at_least(0), default=0, help="of the drawn sets")
    return parse


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    args = parser().parse_args(arguments)
    report(args)
    return 0


def report(args: argparse.Namespace) -> None:
    """Score, print, and write the file that was asked for.

    Raises:
        UserError: files or ids do not fit.
    """
    references = read_references(args.references)
    own, hypotheses = paired(references, read_hypotheses(args.hypotheses))
    classes = _classes(args, own)
    with CaptionScorer(spice_dir=args.spice_dir) as scorer:
        chosen, images = _chosen(args), _images(args, own)
        scores = scorer.score(own, hypotheses, metrics=chosen, images=images)
        content = scores.to_json()
        if args.train is not None:
            training = [text for texts in read_references(args.train).values() for text in texts]
            tokens = scorer.tokenizer.tokenize(hypotheses.values())
            content["diversity"]["novelty"] = novelty(tokens, scorer.tokenizer.tokenize(training))
        if args.versus is not None:
            other = scorer.score(
                *paired(references, read_hypotheses(args.versus)), metrics=chosen, images=images
            )
            versus = paired_test(scores, other, args.bootstrap or 1000, args.seed)
            content["versus"] = {name: vars(difference) for name, difference in versus.items()}
    if args.bootstrap:
        content["intervals"] = {
            name: vars(interval) for name, interval in intervals(scores, args.bootstrap, args.seed).items()
        }
    if classes is not None:
        content["classes"] = by_class(scores, classes)
    _print(content)
    if args.json is not None:
        write_json(args.json, content)


def _classes(args: argparse.Namespace, references: Mapping[Id, list[str]]) -> dict[Id, str] | None:
    """Image id → class: of the file that is named, else as the ground truth says of every image; None: not known."""
    if args.classes is not None:
        content = read_object(args.classes)
        return {n: content.label(str(n)) for n in references if str(n) in content}
    images = read_images(args.references)
    known = {name: image.label("category") for name, image in images.items() if image.fields.get("category")}
    if not all(str(n) in known for n in references):
        return None
    return {n: known[str(n)] for n in references}


@dataclass
class _Chosen:
    metrics: dict[str, Any] = own_keys_of(registry.metrics)


def _chosen(args: argparse.Namespace) -> dict[str, Any] | None:
    """Name → own keys of the metrics that were asked for; None: the usual ones.

    Raises:
        ConfigError: there is no such metric or key.
    """
    load_plugins()
    import_modules(args.imports, lambda what: ConfigError(f"--imports: {what}"))
    usual = [[name] for name in USUAL] if args.clip is not None and not args.metric else []
    clip = [] if args.clip is None else [["CLIPScore", f"run={args.clip}"]]
    asked = [*usual, *args.metric, *clip]
    if not asked:
        return None
    names = Layer({"metrics": {name: {} for name, *_ in asked}}, {("metrics",): "--metric"})
    options = [f"metrics.{name}.{option}" for name, *keys in asked for option in keys]
    layer = merge(names, read_options(options, _Chosen, names, place="--metric"))
    return build(_Chosen, layer.content, layer.places).metrics


def _images(args: argparse.Namespace, references: Mapping[Id, list[str]]) -> dict[Id, Path]:
    """Image id → file, of the images that the ground truth names."""
    if args.clip is None and not args.metric:
        return {}
    folder = ImageFolder(args.images or args.references.resolve().parent.parent / "images")
    entries = read_images(args.references)
    return {
        n: folder.path(entries[str(n)].text("file_name"))
        for n in references
        if str(n) in entries and "file_name" in entries[str(n)]
    }


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


if __name__ == "__main__":
    sys.exit(main())
