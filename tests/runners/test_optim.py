import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bita.config.run import RunConfig
from bita.errors import ConfigError
from bita.runners.optim import (
    LinearWarmupCosine,
    LinearWarmupCosineByStep,
    LinearWarmupStep,
    Schedule,
    build_optimizer,
)

RECORDED = json.loads(
    (Path(__file__).parents[1] / "fixtures/parity/expected.json").read_text(encoding="utf-8")
)["lr_schedules"]
BY_NAME: dict[str, type[Schedule]] = {
    "linear_warmup_cosine_lr": LinearWarmupCosine,
    "linear_warmup_step_lr": LinearWarmupStep,
}


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: f"{case['name']}-{case['epochs']}")
def test_recorded_values(case):
    args, steps = case["args"], case["steps_per_epoch"]
    schedule = BY_NAME[case["name"]](
        peak=args["init_lr"],
        floor=args["min_lr"],
        start=args["warmup_start_lr"],
        warmup_steps=args["warmup_steps"],
        epochs=case["epochs"],
        steps_per_epoch=steps,
        decay_rate=args.get("decay_rate"),
    )
    rates = [schedule.lr_at(epoch, step) for epoch in range(case["epochs"]) for step in range(steps)]
    assert rates == pytest.approx(case["lr"], rel=1e-12, abs=0)


def test_by_step_schedule_has_no_jump_where_warmup_crosses_an_epoch():
    run = RunConfig(max_epoch=4, init_lr=1e-4, min_lr=1e-6, warmup_lr=0.0, warmup_steps=15)
    schedule = LinearWarmupCosineByStep.from_run(run, steps_per_epoch=10)
    rates = [schedule.lr_at(epoch, step) for epoch in range(4) for step in range(10)]
    assert rates[0] == 0.0
    assert rates[15] == pytest.approx(1e-4)
    assert max(abs(b - a) for a, b in itertools.pairwise(rates)) <= 1e-4 / 15 * 1.0001
    assert rates[15:] == sorted(rates[15:], reverse=True)
    assert 1e-6 < rates[-1] < 2e-6


def test_by_step_schedule_without_warmup_starts_at_the_peak():
    schedule = LinearWarmupCosineByStep.from_run(RunConfig(init_lr=0.5, warmup_steps=0), steps_per_epoch=3)
    assert schedule.lr_at(0, 0) == 0.5


def test_step_schedule_needs_its_decay_rate():
    with pytest.raises(ConfigError, match=r"run\.lr_decay_rate"):
        LinearWarmupStep.from_run(RunConfig(), steps_per_epoch=3)


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(2, 3)
        self.ln_vision = nn.Linear(2, 2, bias=False)
        self.query_tokens = nn.Parameter(torch.zeros(1, 2, 2))
        self.temp = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_decay_spares_vectors_biases_and_norms():
    model = Toy()
    optimizer = build_optimizer(model, RunConfig(weight_decay=0.05, beta2=0.99))
    names = {p: name for name, p in model.named_parameters()}
    with_decay, without = ({names[p] for p in group["params"]} for group in optimizer.param_groups)
    assert with_decay == {"proj.weight", "query_tokens"}
    assert without == {"proj.bias", "ln_vision.weight", "temp"}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)


def test_an_encoder_has_a_rate_of_its_own_where_that_is_asked_for():
    model = Toy()
    model.visual_encoder = nn.Linear(2, 2)
    optimizer = build_optimizer(model, RunConfig(vit_lr_scale=0.1))
    scales = {p: group["scale"] for group in optimizer.param_groups for p in group["params"]}
    trained = {name: scales[p] for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, scale in trained.items() if scale == 0.1} == {
        "visual_encoder.weight",
        "visual_encoder.bias",
    }
    assert len(build_optimizer(model, RunConfig()).param_groups) == 2


def test_nothing_to_train_is_an_error():
    with pytest.raises(ConfigError, match="frozen"):
        build_optimizer(Toy().requires_grad_(False), RunConfig())
