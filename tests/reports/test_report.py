"""What a report says, against calculations of another kind; that its page is whole and needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu_scorer import BleuScorer

from bita.errors import UserError
from bita.metrics.stats import draws, paired_test
from bita.metrics.tokenizer import Tokenizer
from bita.reports import figures
from bita.reports.cards import chosen
from bita.reports.report import Findings, content, findings, write_report
from bita.reports.split import Run, Split
from bita.reports.stages import Log, stages

from .conftest import FIRST, REFERENCES, ROOT, make_data, make_run

SCRIPT = [sys.executable, "scripts/report.py"]


def shown(page: Path, row: str) -> dict[str, tuple[str, str, str]]:
    """Metric → value and bounds, as the table of scores has them."""
    text = page.read_text()
    table = text[text.index('<section id="scores">') : text.index("</table>")]
    names = re.findall(r"<th>([^<]+)</th>", table[: table.index("</thead>")])[1:]
    cells = re.search(rf"<th>{row}</th>(.*?)</tr>", table, re.DOTALL)
    assert cells is not None
    numbers = re.findall(r'<td>([\d.]+)<span class="bounds">([\d.]+) – ([\d.]+)</span>', cells[1])
    return dict(zip(names, numbers, strict=True))


def bleu(sets: list[list[int]], tokens: dict[int, str], references: dict[int, list[str]]) -> list[float]:
    """BLEU-4 of sets of images, which may hold an image several times, by pycocoevalcap itself."""
    found = []
    for images in sets:
        scorer = BleuScorer(n=4)
        for image_id in images:
            scorer += (tokens[image_id], references[image_id])
        found.append(scorer.compute_score(option="closest", verbose=0)[0][3])
    return found


def test_intervals_equal_a_bootstrap_that_scores_every_drawn_set(found: Findings, page: Path) -> None:
    ids, scores = sorted(FIRST), found.systems[0].scores
    counts = draws(len(ids), 1000, seed=0).astype(int)
    sets = [[n for n, times in zip(ids, row, strict=True) for _ in range(times)] for row in counts]
    tokens = dict(zip(FIRST, Tokenizer().tokenize(FIRST.values()), strict=True))
    values = {"BLEU-4": bleu(sets, tokens, REFERENCES)}
    cider = {n: of["CIDEr"] for n, of in scores.per_image.items()}
    values["CIDEr"] = [sum(cider[n] for n in images) / len(images) for images in sets]
    said = shown(page, "this model")
    for name, drawn in values.items():
        drawn.sort()
        bounds = [np.interp(share * 999, range(1000), drawn) for share in (0.025, 0.975)]
        assert [float(text) for text in said[name][1:]] == pytest.approx(bounds, abs=6e-4), name
    assert float(said["BLEU-4"][0]) == pytest.approx(bleu([ids], tokens, REFERENCES)[0], abs=6e-4)
    assert float(said["CIDEr"][0]) == pytest.approx(sum(cider.values()) / 8, abs=6e-4)


def test_the_page_is_one_file_and_the_same_bytes_every_time(
    found: Findings, page: Path, tmp_path: Path
) -> None:
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!#|data:image/jpeg;base64,)', text)
    assert not re.search(r"@import|url\((?!#)|fetch\(|https?://(?!www\.w3\.org/)", text)
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>alert" not in text
    assert text.count('<article class="card"') == 8
    assert text.count("<svg") == 3  # lengths; loss and learning rate
    write_report(tmp_path / "again.html", found)
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_what_is_invented_and_copied(found: Findings) -> None:
    model, control = found.systems[:2]
    assert model.invented.examples == {2: ["three airplane"], 302: ["beach", "wave"]}
    assert [n for n, copied in model.copied.items() if copied] == [101]
    assert Counter(model.captions.values()) == Counter(control.captions.values())
    assert all(model.captions[n] != control.captions[n] for n in FIRST)
    assert model.intervals["invented"].value == 2 / 8
    assert {system.name for system in found.systems[2:]} == {
        "the most frequent training caption",
        "the nearest training image's caption",
    }


def test_the_class_oracle_is_there_where_names_tell_the_classes_of_both_splits(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    data = shutil.copytree(runs[0].parent / "data", tmp_path / "data")
    run, name = Run.open(runs[0], data), "the class's most frequent caption"
    assert name not in Split(run).baselines(), "the training split has one class only"
    train = [(3, "a field"), (4, "rows"), (5, "rows"), (150, "a plane"), (250, "a diamond"), (399, "a beach")]
    for number, _ in train:
        shutil.copy(data / "ucm/images/1.png", data / f"ucm/images/{number}.png")
    rows = [{"image": f"{n}.png", "caption": text, "image_id": n} for n, text in train]
    (data / "ucm/annotations/train.json").write_text(json.dumps(rows))
    of_class = ["rows", "a plane", "a diamond", "a beach"]
    assert Split(run).baselines()[name] == {n: of_class[n // 100] for n in REFERENCES}


def test_classes_come_from_what_there_is(found: Findings, tmp_path: Path) -> None:
    split = found.split
    names = split.classes()
    assert (names[1], names[101], names[301]) == ("agricultural", "airplane", "beach")
    file = tmp_path / "classes.json"
    file.write_text(json.dumps({str(n): f"c{n % 2}" for n in REFERENCES}))
    assert split.classes(file)[2] == "c0"
    file.write_text(json.dumps({str(n): n for n in REFERENCES}))
    assert split.classes(file)[301] == "301"
    file.write_text("{}")
    with pytest.raises(UserError, match=r"classes\.json: field '1' is missing"):
        split.classes(file)
    by_name = dict(zip(REFERENCES, ["airport_1", "airport_2", "0007", "pond_9"] * 2, strict=True))
    split.images, before = {n: Path(f"{name}.jpg") for n, name in by_name.items()}, split.images
    try:
        assert [*split.classes().values()][:4] == ["airport", "airport", "(no class)", "pond"]
    finally:
        split.images = before
    of_classes = content(found, split.classes())["classes"]
    ids = [1, 2]
    assert of_classes["agricultural"][0]["images"] == 2
    scores = found.systems[0].scores.per_image
    assert of_classes["agricultural"][0]["CIDEr"] == pytest.approx(sum(scores[n]["CIDEr"] for n in ids) / 2)


def test_two_runs_side_by_side(both: Findings, tmp_path: Path) -> None:
    path = tmp_path / "both.html"
    write_report(path, both)
    text = path.read_text()
    expected = paired_test(both.systems[0].scores, both.systems[1].scores)["CIDEr"]
    foot = text[text.index("<tfoot>") : text.index("</tfoot>")]
    assert f"{expected.value:+.3f}" in foot
    assert f"p = {expected.p:.3f}" in foot
    kinds = chosen(both.judged, {})
    assert kinds["second better"][0] == 2
    assert kinds["first better"][0] == 102
    assert text.count('<p class="said run2"') == 8
    assert '<span class="said run2">second/run</span>' in text  # which of the two is in which colour
    assert (
        text.count("<h3>first/run</h3>") == 2
    )  # how it was trained, which is where the second began; how it was made
    every = text[text.index('<section id="every">') :]
    assert re.findall(r"<tr><th>2\.png</th>.*", every)[0].count("three airplane") == 1  # of the first
    assert re.findall(r"<tr><th>102\.png</th>.*", every)[0].count("<td>lake</td>") == 1  # of the second
    assert {kind for kind in kinds if "of the first" in kind} == {"best of the first", "worst of the first"}


def test_two_runs_configurations_where_they_differ(
    both: Findings, found: Findings, runs: tuple[Path, Path]
) -> None:
    changed = content(both, {})["changed"]
    assert changed == {"model.init_from": ["null", f'"{runs[0]}"']}
    assert content(found, {})["changed"] == {}


def test_an_evaluation_trained_nothing(both: Findings, tmp_path: Path) -> None:
    run = both.runs[1]
    evaluation = replace(run, cfg=replace(run.cfg, run=replace(run.cfg.run, evaluate=True)))
    write_report(tmp_path / "page.html", replace(both, runs=[evaluation, both.runs[0]]))
    training = (tmp_path / "page.html").read_text().partition('id="training"')[2].partition("</section>")[0]
    assert training.count("epochs") == 1
    assert training.count("captioning, an evaluation, which trains nothing") == 1


def test_doubt_and_what_it_is_worth(found: Findings) -> None:
    sure = {n: 0.9 - k / 10 for k, n in enumerate(FIRST)}
    said = content(replace(found, confidence=sure), {})
    assert said["kinds"][-1] == "most doubtful"
    cider = [
        of["CIDEr"] for of in found.systems[0].scores.per_image.values()
    ]  # ids ascend, as confidence falls
    assert said["calibration"]["half"] == pytest.approx(sum(cider[:4]) / 4)
    assert len(said["calibration"]["figures"]) == 2
    assert chosen(found.judged, sure)["most doubtful"][:2] == [302, 301]


def test_stages_and_their_logs(runs: tuple[Path, Path]) -> None:
    assert [stage.name for stage in stages(Run.open(runs[1]))] == ["first/run", "second/run"]
    log = Log.read(runs[0] / "run/log.jsonl")
    assert log.training["loss"] == {2: 2.8, 4: 2.6, 5: 2.0}


def test_of_several_splits_test_is_reported(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Whatever their order in `run.test_splits`."""
    shutil.copytree(runs[0] / "run", tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    text, found = re.subn(r"test_splits:\n *- test\n", "test_splits: [val, test]\n", config.read_text())
    assert found == 1
    config.write_text(text)
    shutil.copy(tmp_path / "run/results/test.json", tmp_path / "run/results/val.json")
    assert list(Run.open(tmp_path / "run").splits()) == ["test", "val"]


def test_a_figure_takes_the_pages_colours() -> None:
    text = figures.curves('a "curve"', {"a": ([1, 2], [1.0, 2.0]), "b": ([1, 2], [2.0, 1.0])})
    assert text.startswith("<svg")
    assert 'aria-label="a &quot;curve&quot;"' in text
    assert all(name in text for name in ("var(--first)", "var(--second)", "var(--line)", "currentColor"))
    assert "#0a0b0" not in text
    assert text == figures.curves('a "curve"', {"a": ([1, 2], [1.0, 2.0]), "b": ([1, 2], [2.0, 1.0])})


def test_a_report_is_made_whatever_the_images_and_annotations_are(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    """Broken images, which an evaluation may skip; a list of annotation files; more ground truth than images."""
    data = shutil.copytree(runs[0].parent / "data", tmp_path / "data") / "ucm"
    (data / "images/1.png").write_bytes(b"broken")
    rows = json.loads((data / "annotations/test.json").read_text())
    for name, part in (("a", rows[:12]), ("b", rows[12:])):
        (data / f"annotations/{name}.json").write_text(json.dumps(part))
    truth = json.loads((data / "annotations/test_gt.json").read_text())
    truth["images"].append({"id": 400, "file_name": "400.png"})
    truth["annotations"].append({"id": 99, "image_id": 400, "caption": "a cat"})
    (data / "annotations/test_gt.json").write_text(json.dumps(truth))
    made = make_run(tmp_path / "made", tmp_path / "data", FIRST)
    config = made / "latest/config.yaml"
    config.write_text(
        config.read_text().replace(
            "ucm/annotations/test.json", "[ucm/annotations/a.json, ucm/annotations/b.json]"
        )
    )
    report = findings([made], baselines=True)
    assert report.split.references == REFERENCES
    write_report(tmp_path / "page.html", report)
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") >= 6
    assert "1 images are grey here, the first: " in page
    shutil.rmtree(data / "images")
    with pytest.raises(UserError, match="no such folder of images"):
        findings([made], baselines=True)


def test_what_one_reference_does_not_tell_is_not_told(runs: tuple[Path, Path], tmp_path: Path) -> None:
    data = shutil.copytree(runs[0].parent / "data", tmp_path / "data")
    truth = json.loads((data / "ucm/annotations/test_gt.json").read_text())
    truth["annotations"] = truth["annotations"][::3]  # one an image
    (data / "ucm/annotations/test_gt.json").write_text(json.dumps(truth))
    write_report(tmp_path / "page.html", findings([make_run(tmp_path / "made", data, FIRST)]))
    text = (tmp_path / "page.html").read_text()
    assert "<tr><th>references</th><td>–</td><td>–</td><td>–</td><td>12.5%</td></tr>" in text
    [words] = re.findall(
        r"references, the first of each image</th><td>([\d.]+)</td><td>(\d+)</td><td>(\d+)", text
    )
    assert words[2] == "8"
    assert float(words[0]) > 4


def test_two_runs_of_other_references_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    both = [
        shutil.copytree(run, tmp_path / name, symlinks=True) for run, name in zip(runs, "ab", strict=True)
    ]
    for run, digest in zip(both, ("1" * 64, "2" * 64), strict=True):
        scores = {"overall": {}, "provenance": {"references": digest}}
        (run / "run/results/test_scores.json").write_text(json.dumps(scores))
    with pytest.raises(UserError, match=r"b/run: its captions of test were scored against other references"):
        findings(both)


def test_mistakes_are_one_line(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.yaml in it or in latest/"):
        Run.open(tmp_path)
    with pytest.raises(UserError, match="no captions of val: has test"):
        Split(Run.open(runs[0]), "val")
    with pytest.raises(
        UserError, match=r"test\.json: no such file; .*env\.cache_root=.*nowhere.* --data DIR"
    ):
        Split(Run.open(runs[0], tmp_path / "nowhere"))
    data = make_data(tmp_path / "data")
    few = make_run(tmp_path / "few", data, {n: text for n, text in FIRST.items() if n != 1})
    with pytest.raises(UserError, match=r"1 .*\(id 1\)"):
        findings([few])
    done = subprocess.run([*SCRIPT, "a", "b", "c"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: 3 runs: a report is of one, or of two")
