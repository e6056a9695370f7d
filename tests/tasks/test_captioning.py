import dataclasses
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "runners"))
from toy_run import toy_config, toy_dataset, toy_model

from bita.datasets.captions import CaptionDataset
from bita.datasets.loaders import EvalLoader
from bita.errors import UserError
from bita.tasks.captioning import CaptioningTask, merge


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """An evaluation of five images by an untrained model, and what it saved."""
    cfg = toy_config(tmp_path_factory.mktemp("run"), task="captioning", num_captions=2)
    dataset = toy_dataset(tmp_path_factory.mktemp("images"), "val", images=5)
    model = toy_model(cfg).eval()
    saved = {}
    with torch.no_grad():
        result = CaptioningTask(cfg).evaluate(model, dataset, EvalLoader(dataset, cfg.run), saved.__setitem__)
    return result, saved


def test_one_caption_an_image_ordered_by_id(evaluated):
    _, saved = evaluated
    assert [entry["image_id"] for entry in saved[""]] == [100, 101, 102, 103, 104]
    assert all(isinstance(entry["caption"], str) for entry in saved[""])


def test_all_of_num_captions_are_saved_and_the_first_is_scored(evaluated):
    _, saved = evaluated
    assert all(len(entry["candidates"]) == 2 for entry in saved[""])
    assert all(entry["candidates"][0] == entry["caption"] for entry in saved[""])


def test_best_is_by_cider_and_bleu_4(evaluated):
    result, saved = evaluated
    assert result.quality == result.scores["CIDEr"] + result.scores["Bleu_4"]
    assert result.scores == saved["_scores"]["overall"]
    assert saved["_scores"]["per_image"].keys() == {"100", "101", "102", "103", "104"}


def test_captions_are_saved_though_unscored(tmp_path):
    cfg = toy_config(tmp_path, report_metric=False)
    dataset, saved = toy_dataset(tmp_path, "val", images=2), {}
    with torch.no_grad():
        result = CaptioningTask(cfg).evaluate(
            toy_model(cfg).eval(), dataset, EvalLoader(dataset, cfg.run), saved.__setitem__
        )
    assert len(saved[""]) == 2
    assert result.scores == {}
    assert result.quality is None


def named_by_text(dataset):
    """The same dataset, with LAVIS's kind of ids."""
    records = [
        dataclasses.replace(record, image_id=f"coco_{999 - record.image_id}") for record in dataset.records
    ]
    return CaptionDataset(dataset.name, dataset.split, records, dataset.folder, dataset.processors)


def test_ids_that_are_text_stay_those_of_the_dataset(evaluated, tmp_path):
    _, numbered = evaluated
    cfg = toy_config(tmp_path, task="captioning", num_captions=2)
    dataset, saved = named_by_text(toy_dataset(tmp_path, "val", images=5)), {}
    assert sorted(dataset.numbers.values()) == [0, 1, 2, 3, 4]
    with torch.no_grad():
        result = CaptioningTask(cfg).evaluate(
            toy_model(cfg).eval(), dataset, EvalLoader(dataset, cfg.run), saved.__setitem__
        )
    captions = {entry["image_id"]: entry["caption"] for entry in numbered[""]}
    assert {e["image_id"]: e["caption"] for e in saved[""]} == {
        f"coco_{999 - n}": captions[n] for n in captions
    }
    per_image = numbered["_scores"]["per_image"]
    assert saved["_scores"]["per_image"] == {f"coco_{999 - int(n)}": per_image[n] for n in per_image}
    assert result.scores == pytest.approx(numbered["_scores"]["overall"])


def test_image_without_references_is_an_error_that_names_it(tmp_path):
    cfg = toy_config(tmp_path)
    dataset = toy_dataset(tmp_path, "val", images=2)
    del dataset.references[101]
    with torch.no_grad(), pytest.raises(UserError, match="101"):
        CaptioningTask(cfg).evaluate(
            toy_model(cfg).eval(), dataset, EvalLoader(dataset, cfg.run), lambda kind, value: None
        )


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ((100, 101), "1 of 3 images have no caption and 0 have two"),
        ((100, 101, 102, 102), "0 of 3 .* 1 have two"),
    ],
)
def test_every_image_must_be_captioned_exactly_once(tmp_path, ids, message):
    dataset = toy_dataset(tmp_path, "val", images=3)
    with pytest.raises(UserError, match=message):
        merge([[{"image_id": image_id, "caption": ""} for image_id in ids]], dataset)


def test_parts_of_processes_are_merged_in_the_order_of_ids(tmp_path):
    dataset = toy_dataset(tmp_path, "val", images=3)
    parts = [
        [{"image_id": 102, "caption": "c"}, {"image_id": 100, "caption": "a"}],
        [{"image_id": 101, "caption": "b"}],
    ]
    assert [entry["caption"] for entry in merge(parts, dataset)] == ["a", "b", "c"]


def test_drawn_captions_do_not_depend_on_batches_and_their_order(tmp_path):
    written = []
    for size, order, seed in ((5, 1, 0), (2, -1, 0), (1, 1, 0), (5, 1, 1)):
        cfg = toy_config(tmp_path, use_nucleus_sampling=True, num_captions=2, report_metric=False)
        cfg.run.batch_size_eval, dataset, saved = size, toy_dataset(tmp_path, "val", images=5), {}
        model, cfg.run.seed = toy_model(cfg).eval(), seed
        batches = list(EvalLoader(dataset, cfg.run))[::order]
        with torch.no_grad():
            CaptioningTask(cfg).evaluate(model, dataset, batches, saved.__setitem__)
        written.append(saved[""])
    assert written[0] == written[1] == written[2] != written[3]
    assert len({entry["caption"] for entry in written[0]}) == 5
