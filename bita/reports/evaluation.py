"""The end of a pipeline: scores beside their floors and ceilings, `scores.json`, and a page to look at.

    python -m bita.reports.evaluation RUN OUT [--seconds N]

RUN is a caption run whose test split was scored; OUT gets `scores.json` and `report.html`. Beside the model stand the
same captions with the images shuffled, the most frequent training caption, the caption of the nearest training image,
and, for the synthetic dataset, the caption rendered from the true facts.
"""

from __future__ import annotations

import base64
import io
import random
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from bita.checkpoint import read_meta, resolve_checkpoint
from bita.config.load import recorded_config
from bita.config.schema import Config
from bita.datasets.annotations import read_annotations, read_ground_truth
from bita.datasets.names import ImageFolder
from bita.datasets.synthetic import load_facts, oracle_captions, score_facts
from bita.errors import UserError, command_line, program
from bita.files import user_path, write_json
from bita.metrics import score_captions
from bita.metrics.files import read_hypotheses
from bita.prepare.baselines import constant_captions, nearest_captions
from bita.processors.rgb import ImageOpener
from bita.records import Id, ordered

Captions = dict[Id, str]

COLUMNS = ("Bleu_1", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
SHOWN = 60
"""Test images on the page."""


class TestSplit:
    """The test split of a run's first dataset, as files."""

    def __init__(self, cfg: Config) -> None:
        self.name, entry = next(iter(cfg.datasets.items()))
        self.root = Path(cfg.env.cache_root)
        self.train, self.test = (
            self.root / str(entry.build_info.annotations[s].storage) for s in ("train", "test")
        )
        self.folder = self.root / str(entry.build_info.images.storage)
        self.references = read_ground_truth(
            self.root / str(entry.build_info.annotations["test"].ground_truth)
        )
        files = ImageFolder(self.folder)
        self.images = {r.image_id: files.path(r.image) for r in read_annotations([self.test])}
        self.opener = ImageOpener(tuple(entry.bands) if entry.bands is not None else None)
        self.facts = self.folder.parent / "facts.json"

    def baselines(self) -> dict[str, Captions]:
        """Captions that need no model, by name."""
        found = {
            "the most frequent training caption": constant_captions(self.train, self.test),
            "the nearest training image's caption": nearest_captions(self.train, self.test, self.folder),
        }
        if self.facts.is_file():
            facts = load_facts(self.facts)
            found["the true facts in a typical sentence"] = oracle_captions(facts, self.images)
        return found


def shuffled(captions: Captions) -> Captions:
    """Return the same captions, each under another image (a seeded cycle through all of them)."""
    ids = ordered(captions)
    random.Random(0).shuffle(ids)
    return {image: captions[other] for image, other in zip(ids, ids[1:] + ids[:1], strict=True)}


def load_run(run: str) -> tuple[Path, Config, Captions]:
    """Return a run's folder, its configuration, and its captions of the test split.

    Raises:
        UserError: the run has no checkpoint, or was not tested.
    """
    checkpoint = resolve_checkpoint(run)
    folder = checkpoint.resolve().parent.parent
    predictions = folder / "results/test.json"
    if not predictions.is_file():
        raise UserError(
            f"{predictions}: is missing; run evaluate.py, or training with run.test_splits=[test]"
        )
    meta = read_meta(checkpoint)
    return folder, recorded_config(meta.config, checkpoint, meta.format), read_hypotheses(predictions)


def write_page(
    path: Path, title: str, rows: list[dict[str, Any]], split: TestSplit, captions: Captions
) -> None:
    """Render `report.html`: the table, then images with captions and references side by side."""
    chosen = ordered(captions)
    random.Random(1).shuffle(chosen)
    cards = [
        {
            "image": thumbnail(split.opener.open(split.images[i])),
            "caption": captions[i],
            "references": split.references[i],
        }
        for i in chosen[:SHOWN]
    ]
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template(
        "evaluation.html.j2"
    )
    path.write_text(
        template.render(title=title, columns=COLUMNS, rows=rows, cards=cards, total=len(captions))
    )


def thumbnail(image: Image.Image) -> str:
    """Return an image as a data URL, so that the page is one file."""
    small = image.copy()
    small.thumbnail((256, 256))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def report(run: str, out: Path, seconds: float | None) -> dict[str, Any]:
    """Score, write both files, print the table; what `scores.json` holds."""
    folder, cfg, captions = load_run(run)
    split = TestSplit(cfg)
    systems = {"this model": captions, "this model, images shuffled": shuffled(captions)} | split.baselines()
    spice = Path(cfg.env.spice_dir) if cfg.env.spice_dir else None
    rows = []
    for name, hypotheses in systems.items():
        overall = dict(score_captions(split.references, hypotheses, spice_dir=spice).overall)
        distinct = len(set(hypotheses.values()))
        row = {"name": name, "scores": overall, "distinct": distinct}
        if split.facts.is_file():
            row["facts"] = score_facts(hypotheses, load_facts(split.facts))
        rows.append(row)
    scores: dict[str, Any] = {
        "test": rows[0]["scores"],
        "test_shuffled_images": rows[1]["scores"],
        "seconds": seconds,
        "distinct_captions": rows[0]["distinct"],
        "test_images": len(captions),
        "baselines": {row["name"]: row["scores"] for row in rows[2:]},
    }
    if "facts" in rows[0]:
        scores["facts"] = rows[0]["facts"]
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "scores.json", scores)
    write_page(out / "report.html", f"{split.name}, test split, {folder.name}", rows, split, captions)
    print(table(rows))
    return scores


def table(rows: list[dict[str, Any]]) -> str:
    """Return the scores in plain text."""
    lines = [f"{'':40}" + "".join(f"{name:>9}" for name in COLUMNS) + f"{'distinct':>10}"]
    for row in rows:
        cells = "".join(f"{row['scores'].get(name, float('nan')):9.3f}" for name in COLUMNS)
        lines.append(f"{row['name']:40}{cells}{row['distinct']:10}")
    if "facts" in rows[0]:
        lines.append("facts that this model's captions state rightly: " + facts_line(rows[0]["facts"]))
    return "\n".join(lines)


def facts_line(facts: dict[str, float]) -> str:
    """Shares of facts, in words."""
    return ", ".join(f"{name} {share:.0%}" for name, share in facts.items())


@program
def main() -> int:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("run", help="a caption run's folder, or its output folder (then the latest)")
    parser.add_argument("out", type=user_path)
    parser.add_argument("--seconds", type=float, help="what the pipeline took, to be noted")
    args = parser.parse_args()
    report(args.run, args.out, args.seconds)
    print(f"look at {args.out / 'report.html'}; scores in {args.out / 'scores.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
