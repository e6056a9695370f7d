import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bita.datasets.annotations import read_annotations
from bita.datasets.synthetic import (
    SCENES,
    Facts,
    draw_scene,
    facts_in_caption,
    five_captions,
    generate,
    load_facts,
    oracle_captions,
    score_facts,
    typical_caption,
)
from bita.errors import UserError
from bita.prepare.baselines import constant_captions, nearest_captions


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "data"
    generate(out, train=60, val=10, test=25, size=64, seed=7)
    return out


def records(dataset: Path, name: str) -> list[dict[str, object]]:
    content: list[dict[str, object]] = json.loads((dataset / "annotations" / f"{name}.json").read_text())
    return content


def tree_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_layout_ids_and_ground_truth(dataset: Path) -> None:
    assert sorted(p.name for p in dataset.iterdir()) == ["annotations", "facts.json", "images"]
    ids: list[object] = []
    for split, number in (("train", 60), ("val", 10), ("test", 25)):
        rows = records(dataset, split)
        assert len(rows) == 5 * number
        assert {tuple(row) for row in rows} == {("image", "caption", "image_id")}
        ids += dict.fromkeys(row["image_id"] for row in rows)
        for name in {str(row["image"]) for row in rows}:
            with Image.open(dataset / "images" / name) as image:
                assert (image.mode, image.size) == ("RGB", (64, 64))
    assert ids == list(range(95))
    truth = json.loads((dataset / "annotations" / "test_gt.json").read_text())
    rows = records(dataset, "test")
    assert [image["id"] for image in truth["images"]] == list(range(70, 95))
    assert [(a["image_id"], a["caption"]) for a in truth["annotations"]] == [
        (r["image_id"], r["caption"]) for r in rows
    ]
    assert len({a["id"] for a in truth["annotations"]}) == len(rows)
    assert not (dataset / "annotations" / "train_gt.json").exists()
    assert load_facts(dataset / "facts.json").keys() == set(range(95))


def test_same_seed_same_bytes_other_seed_other_pictures(dataset: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", train=60, val=10, test=25, size=64, seed=7)
    assert tree_bytes(tmp_path / "again") == tree_bytes(dataset)
    generate(tmp_path / "other", train=1, val=1, test=1, size=64, seed=8)
    assert (tmp_path / "other/images/train_00000.jpg").read_bytes() != (
        dataset / "images/train_00000.jpg"
    ).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "other"]


def test_splits_share_no_picture(dataset: Path) -> None:
    pictures = [path.read_bytes() for path in (dataset / "images").iterdir()]
    assert len(set(pictures)) == len(pictures) == 95


@pytest.mark.parametrize("kind", SCENES)
def test_every_caption_states_the_facts(kind: str) -> None:
    stated = dict.fromkeys((field.name for field in fields(Facts)), 0)
    known = dict(stated)
    for k in range(12):
        _, facts = draw_scene(kind, f"caption test {k}", 64)
        captions = five_captions(facts, f"{k}")
        assert len(set(captions)) == 5
        for caption in [*captions, typical_caption(facts)]:
            assert caption.endswith(" .")
            assert caption == caption.lower()
            assert 7 <= len(caption.split()) <= 20
            said = facts_in_caption(caption)
            for name in stated:
                truth, value = getattr(facts, name), getattr(said, name)
                if truth is None:
                    continue
                known[name] += 1
                stated[name] += value is not None
                assert value in (None, truth), (name, caption)
            assert (said.kind, said.count) == (kind, facts.count)
        assert facts_in_caption(typical_caption(facts)) == facts
    assert all(stated[name] >= 0.6 * known[name] for name in stated)


def test_scenes_vary_and_are_not_flat() -> None:
    for kind in SCENES:
        one, two = (np.asarray(draw_scene(kind, f"vary {k}", 64)[0], np.float32) for k in range(2))
        assert np.abs(one - two).mean() > 8, kind
        assert min(one.std(), two.std()) > 6, kind


def test_free_captions_are_parsed() -> None:
    said = facts_in_caption("Three white planes are parked in two rows at the airport near a road")
    assert said == Facts("airport", 3, "white", "in two rows", "road")
    assert facts_in_caption("a bridge over a blue river").kind == "bridge"
    assert facts_in_caption("in two rows there are six round tanks").count == 6
    assert facts_in_caption("nothing of that kind") == Facts(None)


def test_scores_of_oracle_and_of_wrong_counts(dataset: Path) -> None:
    facts = load_facts(dataset / "facts.json")
    ids = range(70, 95)
    oracle = oracle_captions(facts, ids)
    assert list(oracle) == list(ids)
    assert set(score_facts(oracle, facts).values()) == {1.0}
    counted = [i for i in ids if facts[i].count]
    wrong = oracle | {counted[0]: "two trees"}
    scores = score_facts(wrong, facts)
    assert scores["kind"] == pytest.approx(24 / 25)
    expected = (len(counted) - (facts[counted[0]].count != 2)) / len(counted)
    assert scores["count"] == pytest.approx(expected)
    with pytest.raises(UserError, match="image 1000"):
        score_facts({1000: "a beach"}, facts)


def test_baselines(dataset: Path) -> None:
    train, test = (read_annotations([dataset / f"annotations/{split}.json"]) for split in ("train", "test"))
    constant = constant_captions(train, test)
    captions = [row["caption"] for row in records(dataset, "train")]
    assert set(constant) == set(range(70, 95))
    assert captions.count(constant[70]) == max(map(captions.count, captions))
    nearest = nearest_captions(train, test, dataset / "images")
    assert set(nearest) == set(range(70, 95))
    assert set(nearest.values()) <= set(captions)
    own = nearest_captions(test, test, dataset / "images")
    assert own == {row["image_id"]: row["caption"] for row in reversed(records(dataset, "test"))}
    with pytest.raises(UserError, match=r"train_00000\.jpg: image is missing"):
        nearest_captions(train, train, dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"size": 32}, "size 32"), ({"val": 0}, "val is 0"), ({"size": 512}, "size 512")],
)
def test_bad_numbers_are_refused(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(tmp_path / "out", **({"train": 1, "val": 1, "test": 1, "size": 64, "seed": 0} | changes))
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds something"):
        generate(tmp_path, train=1, val=1, test=1, size=64, seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["keep.txt"]


def test_facts_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_facts(tmp_path / "facts.json")
    (tmp_path / "facts.json").write_text("[1]")
    with pytest.raises(UserError, match="not a facts file"):
        load_facts(tmp_path / "facts.json")


ROOT = Path(__file__).resolve().parents[2]


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/data/make_synthetic.py"), str(tmp_path / "out")]
    small = ["--train", "2", "--val", "1", "--test", "1", "--size", "64"]
    done = subprocess.run([*command, *small], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "synthetic scenes: 4/4" in done.stderr
    assert len(list((tmp_path / "out/images").iterdir())) == 4
    for given, code in (([], 1), (["--trian", "3"], 2), (["--val", "0"], 2)):
        again = subprocess.run([*command, *small, *given], capture_output=True, text=True, check=False)
        assert again.returncode == code
        assert again.stderr.startswith("error: ")
        assert again.stderr.count("\n") == 1


def test_folder_below_a_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        generate(tmp_path / "file" / "out", train=1, val=1, test=1, size=64, seed=0)


def test_no_torch_is_needed() -> None:
    code = "import sys, bita.datasets.synthetic, bita.prepare.baselines; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
