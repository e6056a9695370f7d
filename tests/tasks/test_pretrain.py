import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "runners"))
from toy_run import toy_config, toy_dataset, toy_model

from bita.datasets.captions import CaptionDataset
from bita.datasets.loaders import EvalLoader
from bita.tasks.pretrain import PretrainTask, ranks, retrieval, rows_of


def evaluate(cfg, dataset, model):
    with torch.no_grad():
        return PretrainTask(cfg).evaluate(
            model, dataset, EvalLoader(dataset, cfg.run), lambda kind, value: None
        )


def test_contrastive_loss_and_recall(tmp_path):
    cfg = toy_config(tmp_path, model__arch="bita_former", batch_size_eval=5)
    dataset, model = toy_dataset(tmp_path, "val", images=5), toy_model(cfg).eval()
    result = evaluate(cfg, dataset, model)
    (batch,) = EvalLoader(dataset, cfg.run)
    with torch.no_grad():
        expected = model(batch)
    assert result.scores["loss"] == pytest.approx(float(expected["loss"]), rel=1e-5)
    assert result.quality == -result.scores["loss"]
    assert {f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)} < result.scores.keys()
    assert result.scores["i2t_recall@10"] == 1.0  # ten captions in all


def test_what_is_sent_of_an_image_is_its_own_row(tmp_path):
    """A view of the batch was sent with all of it, once an image."""
    rows = rows_of(torch.arange(24.0).reshape(4, 2, 3))
    assert [row.untyped_storage().nbytes() for row in rows] == [24] * 4
    assert torch.equal(torch.stack(rows), torch.arange(24.0).reshape(4, 2, 3))


def test_ids_that_are_text_change_no_score(tmp_path):
    cfg = toy_config(tmp_path, model__arch="bita_former", batch_size_eval=5)
    dataset, model = toy_dataset(tmp_path, "val", images=5), toy_model(cfg).eval()
    records = [dataclasses.replace(record, image_id=f"a{record.image_id}") for record in dataset.records]
    named = CaptionDataset(dataset.name, "val", records, dataset.folder, dataset.processors)
    assert evaluate(cfg, named, model).scores == evaluate(cfg, dataset, model).scores


def test_caption_loss_is_the_mean_over_tokens_whatever_the_batches(tmp_path):
    dataset = toy_dataset(tmp_path, "val", images=5)
    values = []
    for size in (2, 5):
        cfg = toy_config(tmp_path, batch_size_eval=size)
        values.append(evaluate(cfg, dataset, toy_model(cfg).eval()).scores["loss"])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_recall_on_hand_made_features():
    one, two, three = torch.eye(3)
    images = torch.stack([one, two, three])[:, None]  # one query each
    texts = torch.stack([one, two, two * 0.5, three * 0.9 + one * 0.5, three])
    owners = torch.tensor([10, 20, 30, 30, 10])
    recall = retrieval(images, torch.tensor([10, 20, 30]), texts, owners)
    assert recall["i2t_recall@1"] == pytest.approx(2 / 3)  # image 30 finds the last text, of image 10
    assert recall["i2t_recall@5"] == 1.0
    assert recall["t2i_recall@1"] == pytest.approx(3 / 5)
    assert recall["t2i_recall@5"] == 1.0
    assert recall["mean_recall"] == pytest.approx((2 / 3 + 1 + 1 + 3 / 5 + 1 + 1) / 6)


def by_sorting(scores, truth, k):
    """Recall@k by a stable sort of every row, one after the other."""
    hits = []
    for row, right in zip(scores.tolist(), truth.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda column: -row[column])
        hits.append(any(right[column] for column in order[:k]))
    return sum(hits) / len(hits)


def test_recall_equals_sorting_every_row_with_captions_that_many_images_share():
    torch.manual_seed(3)
    images = F.normalize(torch.randn(70, 4, 8), dim=-1)
    few = F.normalize(torch.randn(30, 8), dim=-1)  # 350 captions in 30 wordings
    texts = few[torch.randint(30, (350,))]
    ids, owners = torch.arange(70) * 3, torch.arange(70).repeat_interleave(5) * 3
    scores = (images.flatten(0, 1) @ few.T).unflatten(0, (70, 4)).amax(dim=1)
    scores = scores[:, [int((few == text).all(dim=1).nonzero()[0]) for text in texts]]
    truth, expected = ids[:, None] == owners[None, :], {}
    for k in (1, 5, 10):
        expected[f"i2t_recall@{k}"] = by_sorting(scores, truth, k)
        expected[f"t2i_recall@{k}"] = by_sorting(scores.T, truth.T, k)
    found = retrieval(images, ids, texts, owners)
    assert found.pop("mean_recall") == pytest.approx(sum(expected.values()) / 6)
    assert found == pytest.approx(expected)


def test_what_is_not_a_number_finds_nothing():
    scores = torch.tensor([[0.5, torch.nan, 0.1], [torch.nan] * 3, [0.3, 0.3, 0.2]])
    right = torch.tensor([[True, False, False], [False, True, False], [False, True, True]])
    assert ranks(scores, right).tolist() == [1, 3, 1]


def test_wordings_are_read_once_and_each_caption_counts(tmp_path, monkeypatch):
    """Images 100 and 106 have the same captions: each finds those of 100 first."""
    cfg = toy_config(tmp_path, model__arch="bita_former", batch_size_eval=3)
    dataset, model = toy_dataset(tmp_path, "val", images=8), toy_model(cfg).eval()
    read, text_features = [], model.text_features
    monkeypatch.setattr(model, "text_features", lambda ids: read.append(len(ids)) or text_features(ids))
    scores = evaluate(cfg, dataset, model).scores
    assert sum(read) == 12  # of 16
    same = [dataclasses.replace(record, caption="a river") for record in dataset.records]
    one = CaptionDataset(dataset.name, "val", same, dataset.folder, dataset.processors)
    found = evaluate(cfg, one, model).scores
    assert (found["i2t_recall@1"], found["i2t_recall@5"], found["i2t_recall@10"]) == (1 / 8, 3 / 8, 5 / 8)
    assert found["t2i_recall@1"] == 1 / 8
    assert 0 < scores["mean_recall"] < 1


BF16 = torch.autocast("cpu", torch.bfloat16)


def test_ranks_and_loss_are_the_same_under_autocast(tmp_path):
    """Features that are near each other: in 16 bit many would tie, and others change places."""
    model = toy_model(toy_config(tmp_path, model__arch="bita_former")).eval()
    torch.manual_seed(0)
    shared, own = torch.randn(1, 1, 256), 0.05 * torch.randn(300, 1, 256)
    images = F.normalize(shared + own, dim=-1)
    texts = F.normalize((shared + own + 0.02 * torch.randn(300, 1, 256))[:, 0], dim=-1)
    numbers = torch.arange(300)
    with torch.no_grad():
        recall, loss = retrieval(images, numbers, texts, numbers), model.contrast(images, texts)["loss"]
        with BF16:
            assert retrieval(images, numbers, texts, numbers) == recall
            assert torch.equal(model.contrast(images, texts)["loss"], loss)
    assert recall["t2i_recall@1"] > 0.99


@pytest.mark.parametrize("bridge", ["ift", "qformer"])
def test_features_and_matches_are_made_in_float32_of_what_the_bridge_gives_under_autocast(tmp_path, bridge):
    cfg = toy_config(tmp_path, model__arch="bita_former", model__bridge=bridge, batch_size_eval=5)
    dataset, model = toy_dataset(tmp_path, "val", images=5), toy_model(cfg).eval()
    (batch,) = EvalLoader(dataset, cfg.run)
    ids = model.tokenize(batch["text"])
    with torch.no_grad(), BF16:
        tokens = model.encode_image(batch["image"])
        seen, read = model.query_image(tokens).float(), model.bridge(text_ids=ids)[:, 0].float()
        joint = model.joint_features(tokens, ids).float()
        found = model.image_features(batch["image"]), model.text_features(ids)
        matches = model.match_scores(batch["image"], ids)
        sixteen = evaluate(cfg, dataset, model).scores
    assert torch.equal(found[0], F.normalize(model.vision_proj(seen), dim=-1))
    assert torch.equal(found[1], F.normalize(model.text_proj(read), dim=-1))
    assert torch.equal(matches, model.itm_head(joint).mean(dim=1)[:, 1])
    assert sixteen["loss"] == pytest.approx(evaluate(cfg, dataset, model).scores["loss"], rel=0.02)
