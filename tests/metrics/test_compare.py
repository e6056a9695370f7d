"""Which results are put side by side, which are refused, and what the rows hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bita.checkpoint import Meta, write_checkpoint
from bita.config.layers import to_yaml
from bita.errors import UserError
from bita.metrics.compare import check_comparable, find_results, rows, table
from scripts.compare_runs import main

PROVENANCE = {"pycocoevalcap": "1.2", "references": "a" * 64, "images": 210, "jars": {"meteor-1.5.jar": "x"}}


def run(folder: Path, seed: int, cider: float, max_epoch: int = 5, **provenance: Any) -> Path:
    (folder / "results").mkdir(parents=True)
    config = f"run:\n  seed: {seed}\n  max_epoch: {max_epoch}\n  name: {folder.name}\n"
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    content = {
        "overall": {"CIDEr": cider, "Bleu_4": 0.5},
        "per_image": {},
        "provenance": PROVENANCE | provenance,
    }
    (folder / "results" / "test_scores.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "results" / "val_epoch3_scores.json").write_text("{}", encoding="utf-8")
    return folder


def test_seeds_of_one_configuration_are_one_row(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / "a" / "first", 1, 1.0),
        run(tmp_path / "a" / "second", 2, 1.2),
        run(tmp_path / "b" / "third", 1, 2.0, max_epoch=9),
    ]
    results = [result for path in runs for result in find_results(path)]
    check_comparable(results)
    found = rows(results)
    assert [(row.label, row.dataset, row.values["CIDEr"]) for row in found] == [
        ("a", "test", [1.0, 1.2]),
        ("b", "test", [2.0]),
    ]
    assert table(found).splitlines() == [
        "model  dataset  runs  CIDEr            Bleu_4",
        "a      test     2     1.1000 ± 0.1414  0.5000 ± 0.0000",
        "b      test     1     2.0000           0.5000",
    ]


def chain(folder: Path, seed: int, cider: float, epochs_before: int = 3) -> Path:
    """Three stages, each in a folder of its seed, as a run of the whole pipeline leaves them."""
    start = None
    for stage in ("stage1", "stage2", "caption"):
        path = run(folder / stage / "run", seed, cider)
        (folder / stage / "latest").symlink_to("run")
        config = {
            "model": {"init_from": start and str(start), "opt_tokenizer": f"{folder}/data/tokenizers/opt"},
            "run": {
                "seed": seed,
                "output_dir": str(path.parent),
                "max_epoch": epochs_before if start is None else 5,
            },
            "env": {"cache_root": f"{folder}/data"},
        }
        (path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        meta = Meta(epoch=0, step_in_epoch=1, steps_per_epoch=1, step=1, config=config)
        write_checkpoint(path / "checkpoints", meta, {})
        (path / "checkpoints" / "last").symlink_to(meta.name)
        start = folder / stage
    return folder / "caption"


def test_seeds_of_whole_chains_are_one_row_and_another_first_stage_is_another(tmp_path: Path) -> None:
    runs = [
        chain(tmp_path / "seed1", 1, 1.0),
        chain(tmp_path / "seed2", 2, 1.2),
        chain(tmp_path / "longer", 1, 2.0, epochs_before=9),
    ]
    found = rows(result for path in runs for result in find_results(path))
    assert [row.values["CIDEr"] for row in found] == [[1.0, 1.2], [2.0]]


def test_chains_whose_start_is_gone_are_not_averaged(tmp_path: Path) -> None:
    runs = [chain(tmp_path / f"seed{n}", n, float(n)) for n in (1, 2)]
    for n in (1, 2):
        shutil.rmtree(tmp_path / f"seed{n}" / "stage1")
    found = rows(result for path in runs for result in find_results(path))
    assert [row.values["CIDEr"] for row in found] == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("key", "value"), [("references", "b" * 64), ("pycocoevalcap", "1.3"), ("jars", {}), ("images", 209)]
)
def test_other_references_or_versions_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    first, second = run(tmp_path / "a", 1, 1.0), run(tmp_path / "b", 1, 1.0, **{key: value})
    with pytest.raises(UserError, match=rf"^not comparable: .*/b/.* and .*/a/.* differ in {key} "):
        check_comparable([*find_results(first), *find_results(second)])


def test_another_java_or_command_may_differ(tmp_path: Path) -> None:
    paths = [run(tmp_path / "a", 1, 1.0, java="17"), run(tmp_path / "b", 2, 1.0, java="25", command=["x"])]
    check_comparable([result for path in paths for result in find_results(path)])


def test_clip_scores_of_two_models_are_refused_and_their_absence_is_not(tmp_path: Path) -> None:
    with_one = run(tmp_path / "a", 1, 1.0, clip_model={"model.safetensors": "x"})
    without, other = (
        run(tmp_path / "b", 1, 1.0),
        run(tmp_path / "c", 1, 1.0, clip_model={"model.safetensors": "y"}),
    )
    check_comparable([*find_results(with_one), *find_results(without)])
    with pytest.raises(UserError, match="differ in clip_model"):
        check_comparable([*find_results(with_one), *find_results(other)])


def test_one_model_on_several_datasets_is_a_row_for_each(tmp_path: Path) -> None:
    folder = run(tmp_path / "out" / "all", 1, 1.0)
    scores = json.loads((folder / "results/test_scores.json").read_text(encoding="utf-8"))
    (folder / "results/test_scores.json").unlink()
    for name, cider in (("rsicd_caption", 0.8), ("ucm_caption", 2.5)):
        content = {**scores, "overall": {"CIDEr": cider}, "provenance": PROVENANCE | {"references": name}}
        (folder / f"results/test_{name}_scores.json").write_text(json.dumps(content), encoding="utf-8")
    results = find_results(folder)
    check_comparable(results)
    assert table(rows(results)).splitlines() == [
        "model  dataset             runs  CIDEr",
        "out    test_rsicd_caption  1     0.8000",
        "out    test_ucm_caption    1     2.5000",
    ]


def test_files_and_output_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "out" / "run1", 1, 1.0)
    (tmp_path / "out" / "latest").symlink_to("run1")
    assert [result.path.name for result in find_results(tmp_path / "out")] == ["test_scores.json"]
    assert main([str(tmp_path / "out/run1"), str(tmp_path / "out/latest"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[2:4] == ["1", "1.0000"]  # one run, by three names
    [result] = find_results(folder / "results" / "test_scores.json")
    assert result.overall["CIDEr"] == 1.0
    with pytest.raises(UserError, match="neither a result file nor a run"):
        find_results(tmp_path / "nothing")
    with pytest.raises(UserError, match="not a result file"):
        find_results(folder / "results" / "val_epoch3_scores.json")
