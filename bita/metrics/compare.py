"""Runs side by side: what may be compared, means over seeds, one table over datasets.

A result file is what a run writes beside its predictions (`results/test_scores.json`), or what
`python -m bita.metrics … --json FILE` writes.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bita.checkpoint import folder_of, read_meta, resolve_checkpoint
from bita.config.layers import read_layer
from bita.errors import UserError
from bita.files import user_path
from bita.records import load_json

MUST_AGREE = ("pycocoevalcap", "metrics", "tokenizer", "jars", "references", "images")
WHERE_BOTH_HAVE_IT = ("clip_model",)
"""Of results that have a CLIPScore; those without one can still be compared by the other metrics."""
OF_ONE_RUN = {
    "run": ("name", "output_dir", "seed", "resume", "num_workers", "device", "log_freq", "loggers"),
    "env": ("cache_root", "spice_dir"),
}
"""Keys that may differ between runs of the same configuration."""


@dataclass(frozen=True)
class Result:
    """One scored set of captions.

    Attributes:
        path: the file.
        group: runs with the same one differ by their seed only, and so do those that they started from.
        label: what a table calls the group.
        dataset: split or dataset.
        overall: metric → value.
        provenance: what it was made with.
    """

    path: Path
    group: str
    label: str
    dataset: str
    overall: dict[str, float]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A group's scores on a dataset: metric → values of its runs."""

    label: str
    dataset: str
    values: dict[str, list[float]]


def find_results(path: Path) -> list[Result]:
    """Return the results of a run folder (or of the `latest` in an output folder), or one result file.

    Raises:
        UserError: nothing there, or not a result file.
    """
    if path.is_file():
        return [_result(path, str(path), path.stem, path.stem)]
    run = path / "latest" if (path / "latest").is_dir() else path
    files = sorted(file for file in (run / "results").glob("*_scores.json") if "_epoch" not in file.name)
    if not files:
        raise UserError(
            f"{path}: neither a result file nor a run with results/*_scores.json; evaluate it first"
        )
    group = _configuration(run)
    label = run.resolve().parent.name if group else run.resolve().name
    return [_result(file, group or str(run), label, file.name.removesuffix("_scores.json")) for file in files]


def check_comparable(results: Sequence[Result]) -> None:
    """See that results on the same dataset were scored alike.

    Raises:
        UserError: two were not; says which and in what.
    """
    first: dict[str, Result] = {}
    for result in results:
        other = first.setdefault(result.dataset, result)
        for key in (*MUST_AGREE, *WHERE_BOTH_HAVE_IT):
            mine, theirs = result.provenance.get(key), other.provenance.get(key)
            if mine != theirs and not (key in WHERE_BOTH_HAVE_IT and None in (mine, theirs)):
                raise UserError(
                    f"not comparable: {result.path} and {other.path} differ in {key} ({_short(mine)} and "
                    f"{_short(theirs)}); score both again with `python -m bita.metrics`"
                )


def rows(results: Iterable[Result]) -> list[Row]:
    """Return one row for each group and dataset, in order of appearance."""
    found: dict[tuple[str, str], Row] = {}
    for result in results:
        row = found.setdefault((result.group, result.dataset), Row(result.label, result.dataset, {}))
        for metric, value in result.overall.items():
            row.values.setdefault(metric, []).append(value)
    return list(found.values())


def table(found: Sequence[Row]) -> str:
    """Mean ± standard deviation (of the sample) over the runs of each row."""
    metrics = list(dict.fromkeys(metric for row in found for metric in row.values))
    runs = [max(map(len, row.values.values()), default=0) for row in found]
    lines = [["model", "dataset", "runs", *metrics]]
    for row, count in zip(found, runs, strict=True):
        lines.append(
            [row.label, row.dataset, str(count), *(_cell(row.values.get(name, [])) for name in metrics)]
        )
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def read_scores(path: Path) -> dict[str, Any]:
    """Return the content of a result file, which has `overall` scores and their `provenance`.

    Raises:
        UserError: it is none.
    """
    content = load_json(path)
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("overall"), dict)
        or not isinstance(content.get("provenance"), dict)
        or not content["provenance"]
    ):
        raise UserError(f"{path}: not a result file; it has no overall scores with their provenance")
    return content


def _result(path: Path, group: str, label: str, dataset: str) -> Result:
    content = read_scores(path)
    return Result(path, group, label, dataset, content["overall"], content["provenance"])


def _configuration(run: Path) -> str | None:
    """The configurations of a run and of those that it started from, as text, without what differs from seed to seed.

    None where there is none.
    """
    path = run / "config.yaml"
    return json.dumps(_chain(read_layer(path).content), sort_keys=True) if path.is_file() else None


def _chain(config: dict[str, Any], above: frozenset[Path] = frozenset()) -> list[Any]:
    """Return a configuration, then that of the run that it started from, and so on; where that is gone, its path."""
    own = _of_all_seeds(config)
    start = own.get("model", {}).pop("init_from", None)
    if start is None:
        return [own]
    try:
        folder = folder_of(resolve_checkpoint(user_path(start))).resolve()
        before = read_meta(folder).config
    except UserError:
        return [own, start]
    return [own, *_chain(before, above | {folder})] if before and folder not in above else [own, start]


def _of_all_seeds(config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy without the keys of one run, in which paths below the cache root say so."""
    root = str((config.get("env") or {}).get("cache_root") or "")

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: copied(item) for key, item in value.items()}
        if isinstance(value, list):
            return [copied(item) for item in value]
        below = isinstance(value, str) and root and (value == root or value.startswith(f"{root}/"))
        return f"${{env.cache_root}}{value[len(root) :]}" if below else value

    return {
        section: {key: copied(item) for key, item in keys.items() if key not in OF_ONE_RUN.get(section, ())}
        if isinstance(keys, dict)
        else keys
        for section, keys in config.items()
    }


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 16 else f"{text[:16]}…"
