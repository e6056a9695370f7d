"""A report: one page that says how good a run's captions are and how sure that is, and shows them.

    from bita.reports.report import write_report
    write_report(["output/quickstart/caption"])

The page needs nothing beside it, and no network.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bita.config.load import config_to_dict, flat
from bita.errors import UserError
from bita.files import write_text
from bita.inference.calibrate import PERFECT
from bita.inference.confidence import expected_calibration_error, reliability, risk_coverage
from bita.metrics.hallucination import Invented
from bita.metrics.stats import by_class, paired_test
from bita.records import Id
from bita.reports import cards, figures, stages
from bita.reports.judge import Judge, Judged
from bita.reports.model import Looked, captioner_of, confidences, looked
from bita.reports.split import Run, Split, shuffled

LOOKED = 6
"""Images of which the page shows where the model looked."""
FREQUENT = 10
"""Lines of a list of what comes most often."""


@dataclass(frozen=True)
class Findings:
    """What a report says.

    Attributes:
        split: that was captioned.
        runs: the run, or the two that are compared, by folder.
        systems: captions judged: first those of the runs, then the first run's with the images shuffled, then others
            that need no model.
        people: what a reference is like by the others (`Judge.people`).
        confidence: image id → the quality to expect of the first run's caption, from 0 to 1; {} where it is not known.
        consensus: the CIDEr whose quality is 1 (`bita.inference.confidence`).
        looked: where the first run's model looked in a few images.
    """

    split: Split
    runs: list[Run]
    systems: list[Judged]
    people: tuple[dict[str, float], Invented | None, float | None]
    confidence: dict[Id, float] = field(default_factory=dict)
    consensus: float = PERFECT
    looked: list[Looked] = field(default_factory=list)

    @property
    def judged(self) -> list[Judged]:
        """The runs' captions."""
        return self.systems[: len(self.runs)]


def findings(
    paths: Sequence[str | Path],
    *,
    name: str | None = None,
    data: Path | None = None,
    baselines: bool = False,
    model: bool = False,
) -> Findings:
    """Judge the captions of a run, or of two on the same split.

    Args:
        paths: their folders.
        name: of the results, such as `test`; None: the first that there are.
        data: in the place of `env.cache_root`.
        baselines: judge captions that need no model, too; it takes as long as opening all training images.
        model: load the first run's model and ask it where it looked and, where it is calibrated, how sure it is.

    Raises:
        UserError: no such run, no captions, or two runs that did not caption the same images.
    """
    runs = [Run.open(path, data) for path in paths]
    split = Split(runs[0], name)
    scored = [run.references_hash(split.name) for run in runs] if len(runs) > 1 else []
    if None not in scored and len(set(scored)) > 1:
        raise UserError(
            f"{runs[-1].folder}: its captions of {split.name} were scored against other references than those of "
            f"{runs[0].folder}; compare runs on the same images and captions"
        )
    judge, systems = Judge(split, runs[0].cfg), []
    for run in runs:
        if split.name not in run.splits():
            raise UserError(
                f"{run.folder}: no captions of {split.name}: {', '.join(run.splits()) or 'none at all'}"
            )
        title = "this model" if len(runs) == 1 else run.name
        systems.append(judge(title, run.captions(split.name)))
    systems.append(judge(f"{systems[0].name}, images shuffled", shuffled(systems[0].captions)))
    if baselines:
        systems += [judge(title, captions) for title, captions in split.baselines().items()]
    found = Findings(split, runs, systems, judge.people())
    return asked(found) if model else found


def asked(found: Findings) -> Findings:
    """Return the same, with what the first run's model says itself."""
    split, captions, captioner = found.split, found.systems[0].captions, captioner_of(found.runs[0])
    return replace(
        found,
        confidence=confidences(captioner, split, captions),
        consensus=PERFECT if captioner.calibration is None else captioner.calibration.consensus,
        looked=looked(captioner, split, captions, cards.some(captions)[:LOOKED]),
    )


def write_report(path: Path, found: Findings, classes: Mapping[Id, str] | None = None) -> None:
    """Write the page.

    Args:
        path: the file.
        found: what it says.
        classes: image id → class; None: as `Split.classes` finds them.
    """
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": lambda value: f"{value:.3f}",
        "percent": lambda value: f"{value:.1%}",
        "metric": lambda name: name.replace("Bleu_", "BLEU-").replace("ROUGE_", "ROUGE-").replace("_", " "),
    }
    template = environment.get_template("report.html.j2")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(
        path, template.render(content(found, found.split.classes() if classes is None else classes)) + "\n"
    )


def write_reports(folder: Path) -> list[Path]:
    """Write a report of each split that a run captioned: `report.html`; `report_SPLIT.html` where there are several.

    Args:
        folder: of the run.
    """
    names: list[str | None] = [*Run.open(folder).splits()] or [None]
    paths = [folder / ("report.html" if len(names) == 1 else f"report_{name}.html") for name in names]
    for name, path in zip(names, paths, strict=True):
        write_report(path, findings([folder], name=name))
    return paths


def content(found: Findings, classes: Mapping[Id, str]) -> dict[str, Any]:
    """Return what the template puts on the page."""
    first, split = found.systems[0], found.split
    confidence = found.confidence
    every = cards.rows(found.judged, split, classes, confidence)
    kinds = cards.chosen(found.judged, confidence)
    every_stage = {stage.folder: stage for run in found.runs for stage in stages.stages(run)}
    return {
        "title": f"{split.dataset}, {split.name}",
        "runs": [run.name for run in found.runs],
        "images": len(first.captions),
        "metrics": [name for name in first.scores.overall if not name.startswith("invented")],
        "systems": found.systems,
        "differences": paired_test(first.scores, found.judged[1].scores) if len(found.runs) == 2 else {},
        "by": cards.rank_by(first),
        "classes": _classes(found.judged, classes),
        "people": found.people,
        "words": [(system.name, system.scores.diversity) for system in found.systems]
        + [("references, the first of each image", found.people[0])],
        "lengths": figures.lengths(_texts(found)),
        "frequent": Counter(first.captions.values()).most_common(FREQUENT),
        "inventions": Counter(what for said in first.invented.examples.values() for what in said).most_common(
            FREQUENT
        ),
        "kinds": list(kinds),
        "cards": cards.cards(every, kinds, split),
        "every": every,
        "calibration": _calibration(found),
        "looked": found.looked,
        "stages": [stages.described(stage) for stage in every_stage.values()],
        "notes": list(dict.fromkeys(n for system in found.systems for n in system.scores.notes))
        + split.notes,
        "provenance": first.scores.provenance,
        "made": [_made(run) for run in found.runs],
        "changed": _changed(found.runs),
    }


def _texts(found: Findings) -> dict[str, list[str]]:
    """Whose → captions, for their lengths."""
    own = {judged.name: list(judged.captions.values()) for judged in found.judged}
    return own | {"references": [text for texts in found.split.references.values() for text in texts]}


def _classes(judged: Sequence[Judged], classes: Mapping[Id, str]) -> dict[str, list[dict[str, float]]]:
    """Class → its scores under each run; {} where classes are not known."""
    if not classes:
        return {}
    each = [by_class(one.scores, classes) for one in judged]
    return {name: [of[name] for of in each] for name in each[0]}


def _calibration(found: Findings) -> dict[str, Any]:
    """What confidence is worth, where there is one: plots, the error, what keeping half gains."""
    first, metric = found.systems[0], cards.rank_by(found.systems[0])
    if not found.confidence:
        return {}
    sure = np.array([found.confidence[n] for n in first.captions])
    scores = np.array([first.scores.per_image[n][metric] for n in first.captions])
    quality = np.minimum(1.0, scores / found.consensus)
    kept = {"the most confident": risk_coverage(sure, scores), "the best": risk_coverage(scores, scores)}
    half = np.argsort(-sure, kind="stable")[: (len(sure) + 1) // 2]
    return {
        "error": expected_calibration_error(sure, quality),
        "half": float(scores[half].mean()),
        "figures": [figures.reliability(reliability(sure, quality)), figures.coverage(metric, kept)],
    }


def _changed(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Key → its value in each of two runs, where they differ; {} of one run."""
    each = [dict(flat(config_to_dict(run.cfg))) for run in runs]
    keys = (key for key in dict.fromkeys(key for one in each for key in one) if key != "run.output_dir")
    values = {key: [json.dumps(one[key]) if key in one else "–" for one in each] for key in keys}
    return {key: of for key, of in values.items() if len(set(of)) > 1}


def _made(run: Run) -> dict[str, Any]:
    """What a run's folder says of how it came about."""
    record, config = run.folder / "run.json", run.folder / "config.yaml"
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    said = {
        key: known[key]
        for key in ("command", "git_commit", "started", "finished", "device")
        if known.get(key)
    }
    return {"name": run.name, "said": said, "config": config.read_text(encoding="utf-8")}
