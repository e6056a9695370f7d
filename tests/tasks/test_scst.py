"""The self-critical stage: rewards that are the scorer's, gradients by hand, and captions that get better."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "runners"))
from toy_run import toy_config, toy_dataset, toy_model, toy_runner

from bita.batch import Written
from bita.config.parts import LoraSize, ScstConfig
from bita.config.schema import Config
from bita.datasets.readers import TrainReader
from bita.metrics import CaptionScorer
from bita.metrics.reward import CaptionReward
from bita.models.base import BitaModel
from bita.models.language.decoder import IGNORED
from bita.tasks.scst import ScstTask
from tests.two_processes import assert_each_equals, learned, on_two

REFERENCES = [
    ["there is one river here", "a winding river"],
    ["two planes , one of them white", "some planes"],
    ["a tennis court"],
]
WRITTEN = [["a winding river here", ""], ["two planes", "one plane , white"], ["a court", "a tennis court"]]


@pytest.mark.parametrize("bleu_weight", [0.0, 2.0])
def test_rewards_are_the_scorers_values_of_each_image(bleu_weight: float) -> None:
    reward = CaptionReward(REFERENCES, bleu_weight)
    found = reward([0, 1, 2], WRITTEN)
    with CaptionScorer() as scorer:
        for k in range(2):
            hypotheses = {image: captions[k] for image, captions in enumerate(WRITTEN)}
            scores = scorer.score(dict(enumerate(REFERENCES)), hypotheses).per_image
            for image in range(3):
                expected = scores[image]["CIDEr"] + bleu_weight * scores[image]["Bleu_4"]
                assert found[image][k] == pytest.approx(expected, abs=1e-12)


def test_loss_is_minus_advantage_times_log_likelihood(tmp_path: Path) -> None:
    """Against the log-probabilities of each caption read by itself."""
    model = toy_model(toy_config(tmp_path)).eval()
    prefix = torch.randn(2, 4, 32)
    ids = torch.tensor([[2, 5, 6], [2, 7, 1], [2, 8, 9], [2, 4, 6]])
    labels = torch.tensor([[IGNORED, 5, 6], [IGNORED, 7, IGNORED], [IGNORED, 8, 9], [IGNORED, 4, 6]])
    weights = torch.tensor([1.0, -2.0, 0.5, 0.0])
    found = model.written_loss(prefix, Written(ids, labels, weights, 0.0))
    total = torch.zeros(())
    for caption in range(4):
        words = model.decoder.embed(ids[caption][None])
        inputs = torch.cat([prefix[caption // 2][None], words], dim=1)
        log_probs = model.opt_model(inputs_embeds=inputs).logits[0, 4:-1].log_softmax(-1)
        kept = labels[caption, 1:] != IGNORED
        total = total - weights[caption] * log_probs[kept, labels[caption, 1:][kept]].sum()
    assert found.item() == pytest.approx(total.item() / 4, rel=1e-5)


def scst(tmp_path: Path, **options: object):
    args = ScstConfig(**{"samples": 4, **options})  # type: ignore[arg-type]
    return toy_config(tmp_path, name="run", task_args=args, min_len=1)


def test_a_drawn_caption_is_held_against_the_others_of_its_image(tmp_path: Path) -> None:
    """Advantages of an image sum to zero, and equal captions have none."""
    cfg = scst(tmp_path / "out")
    task, data = ScstTask(cfg), toy_dataset(tmp_path / "images")
    task.begin([data])
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = toy_model(cfg)

        def forward(self, batch):
            seen.append(batch["written"])
            return self.module(batch)

    image = TrainReader([data], 42, torch.device("cpu")).read([(0, 0, 0), (2, 0, 2)])[0]["image"]
    batch = {"image": image, "text": ["a", "b"], "image_id": [100, 101], "draw": [1, 2]}
    outputs = [task.train_step(Spy(), batch) for _ in range(2)]
    assert seen[0].weights.view(2, 4).sum(dim=1).tolist() == pytest.approx([0, 0], abs=1e-5)
    assert torch.equal(seen[0].ids, seen[1].ids), "the same numbers draw the same captions"
    outputs[0]["loss"].backward()
    assert outputs[0]["reward"] >= 0


@pytest.mark.parametrize("options", [{}, {"caption_weight": 0.5}])
def test_a_run_of_the_stage_resumes_byte_by_byte(tmp_path: Path, options: dict[str, float]) -> None:
    images, files = tmp_path / "images", []
    for name, epochs in (("whole", (2,)), ("halves", (1, 2))):
        for epoch in epochs:
            cfg = scst(tmp_path / name, **options)
            cfg.run.task, cfg.run.resume, cfg.run.max_epoch = "captioning_scst", "auto", epoch
            cfg.run.lr_sched = "linear_warmup_step_lr"
            cfg.run.lr_decay_rate = 1.0
            runner = toy_runner(cfg, images)
            runner.task = ScstTask(cfg)
            runner.train()
            runner.run_dir.lock.close()
        files.append(runner.run_dir.checkpoints / "epoch_0002" / "model.safetensors")
    assert files[0].read_bytes() == files[1].read_bytes()
    events = map(json.loads, (runner.run_dir.path / "log.jsonl").read_text().splitlines())
    assert any("reward" in event for event in events)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model writes words of the references, so that rewards differ."""
    folder = tmp_path_factory.mktemp("spoken")
    runner = toy_runner(toy_config(folder, name="run", max_epoch=15, init_lr=1e-2), folder / "images")
    runner.train()
    runner.run_dir.lock.close()
    return folder


def learn(cfg: Config, model: BitaModel, images: Path, places: list[int]) -> dict[str, Tensor]:
    """A step on some of the images."""
    task, data = ScstTask(cfg), toy_dataset(images)
    task.begin([data])
    batch, _ = TrainReader([data], 42, torch.device("cpu")).read([(place, 0, place) for place in places])
    return learned(model, task.train_step(model, batch), ("loss", "reward"))


def learn_half(cfg: Config, model: BitaModel, images: Path, rank: int) -> dict[str, Tensor]:
    return learn(cfg, model, images, [4 * rank, 4 * rank + 2])


@pytest.mark.parametrize(
    ("options", "learns"),
    [
        ({"model__freeze_lm": False}, "opt_model.model.decoder.layers.0.fc1.weight"),
        ({"model__freeze_lm": True}, "opt_proj.weight"),
        ({"model__freeze_lm": True, "model__lora": LoraSize(r=4, alpha=8.0)}, "lora_B"),
    ],
    ids=["tuned", "frozen", "lora"],
)
def test_gradients_on_two_processes_equal_one(
    tmp_path: Path, spoken: Path, start_method: str, options: dict[str, Any], learns: str
) -> None:
    args, images = ScstConfig(samples=4), spoken / "images"
    cfg = toy_config(tmp_path, max_len=12, task_args=args, model__init_from=str(spoken), **options)
    model = toy_model(cfg).eval()  # no dropout, which would act on the drawing too
    parts = on_two(learn_half, (cfg, model, images), tmp_path, start_method)
    whole = learn(cfg, model, images, [0, 2, 4, 6])
    assert whole["reward"] > 0
    assert any(learns in name and tensor.abs().max() > 0 for name, tensor in whole.items())
    of_language_model = {name for name in whole if "opt_model" in name and "lora" not in name}
    assert bool(of_language_model) == (not cfg.model.freeze_lm)
    assert_each_equals(parts, whole)
