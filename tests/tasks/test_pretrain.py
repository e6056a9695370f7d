import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "runners"))
from toy_run import toy_config, toy_dataset, toy_model

from bita.datasets.loaders import eval_loader
from bita.tasks.pretrain import PretrainTask, retrieval


def evaluate(cfg, dataset, model):
    with torch.no_grad():
        return PretrainTask(cfg).evaluate(
            model, dataset, eval_loader(dataset, cfg.run), lambda kind, value: None
        )


def test_contrastive_loss_and_recall(tmp_path):
    cfg = toy_config(tmp_path, model__arch="bita_former", batch_size_eval=5)
    dataset, model = toy_dataset(tmp_path, "val", images=5), toy_model(cfg).eval()
    result = evaluate(cfg, dataset, model)
    (batch,) = eval_loader(dataset, cfg.run)
    with torch.no_grad():
        expected = model(batch)
    assert result.scores["loss"] == pytest.approx(float(expected["loss"]), rel=1e-5)
    assert result.quality == -result.scores["loss"]
    assert {f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)} < result.scores.keys()
    assert result.scores["i2t_recall@10"] == 1.0  # ten captions in all


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
