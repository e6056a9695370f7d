"""On a GPU, in 16 bit: a resumed run differs from an uninterrupted one by no more than a repeated one does."""

import json

import pytest
import torch
from test_epoch_runner import StopHere, interrupt_after
from toy_run import toy_config, toy_runner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
EPOCHS = 4


def losses(runner) -> list[float]:
    lines = map(json.loads, (runner.run_dir.path / "log.jsonl").read_text().splitlines())
    return list({line["step"]: line["loss"] for line in lines if line["event"] == "train"}.values())


@pytest.mark.parametrize("frozen", [True, False])
def test_resumed_run_is_within_the_noise_of_a_repeated_one(tmp_path, frozen):
    options = {"name": "run", "device": "cuda", "log_freq": 1, "save_every_steps": 2, "max_epoch": EPOCHS}
    options |= {"model__freeze_vit": frozen, "resume": "auto"}
    runs = []
    for name in ("first", "repeated"):
        runs.append(toy_runner(toy_config(tmp_path / name, **options), tmp_path / "images"))
        runs[-1].train()
    assert next(runs[0].model.parameters()).is_cuda
    for stop in (3, 9, 15):
        broken = toy_runner(toy_config(tmp_path / "resumed", **options), tmp_path / "images")
        interrupt_after(broken, stop)
        with pytest.raises(StopHere):
            broken.train()
        broken.run_dir.lock.close()
    runs.append(toy_runner(toy_config(tmp_path / "resumed", **options), tmp_path / "images"))
    runs[-1].train()
    first, repeated, resumed = (torch.tensor(losses(run)) for run in runs)
    assert len(first) == len(resumed) == 6 * EPOCHS
    noise = float((first - repeated).abs().max())
    assert float((first - resumed).abs().max()) <= 2 * noise + 1e-6


def test_deterministic_runs_are_equal_whole_repeated_and_resumed(tmp_path, request):
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    options = {"name": "run", "device": "cuda", "save_every_steps": 2, "max_epoch": 2, "resume": "auto"}
    options |= {"deterministic": True}
    weights = []
    for name in ("first", "repeated", "resumed"):
        if name == "resumed":
            broken = toy_runner(toy_config(tmp_path / name, **options), tmp_path / "images")
            interrupt_after(broken, 7)
            with pytest.raises(StopHere):
                broken.train()
            broken.run_dir.lock.close()
        run = toy_runner(toy_config(tmp_path / name, **options), tmp_path / "images")
        run.train()
        weights.append(run.model.state_dict())
    for other in weights[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in weights[0].items())
