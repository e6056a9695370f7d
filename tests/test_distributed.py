import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bita import distributed
from bita.errors import ConfigError
from tests.distributed_worker import look

HERE = Path(__file__).parent


def torchrun(
    processes: int, script: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*command, str(script), *arguments],
        env=os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module", params=[1, 2, pytest.param(3, marks=pytest.mark.long)])
def seen(request, tmp_path_factory):
    """What each of so many processes saw."""
    processes = request.param
    if processes == 1:
        return [look()]
    out = tmp_path_factory.mktemp(f"processes_{processes}")
    answer = torchrun(processes, HERE / "distributed_worker.py", str(out))
    assert answer.returncode == 0, answer.stderr
    return [torch.load(out / f"{rank}.pt") for rank in range(processes)]


def test_objects_and_numbers_reach_every_process(seen):
    for rank, part in enumerate(seen):
        assert part["world_size"] == len(seen)
        assert part["is_main"] == (rank == 0)
        assert part["objects"] == [f"rank {other}" for other in range(len(seen))]
        assert part["from_main"] == part["on_main"] == 0
        assert part["highest"] == 10 * (len(seen) - 1)


def test_an_error_on_the_main_process_is_raised_on_all(seen):
    assert {part["problem"] for part in seen} == {"no such file, says rank 0"}


def test_gathered_features_are_a_constant_in_the_order_of_ranks(seen):
    for part in seen:
        assert part["gathered"][:, 0].tolist() == [float(rank) for rank in range(len(seen)) for _ in range(2)]
        assert not part["requires_grad"]


def test_alone_means_one_process(seen):
    assert all(part["alone"] == (1, 0, [1.0]) for part in seen)


def test_loss_and_gradient_through_the_gather_equal_one_process(seen):
    loss, gradient = look()["with_grad"]
    for part in seen:
        torch.testing.assert_close(part["with_grad"][0], loss)
        torch.testing.assert_close(part["with_grad"][1], gradient)
        torch.testing.assert_close(part["without_grad"][0], loss)
        assert (part["without_grad"][1] - gradient).abs().max() > 0.01


def test_without_torchrun_everything_stays_here():
    x = torch.ones(2, requires_grad=True)
    assert distributed.gather_features(x, with_grad=True) is x
    assert not distributed.gather_features(x, with_grad=False).requires_grad
    assert distributed.gather_objects(3) == [3]
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_asking_for_an_absent_gpu_is_an_error_that_names_the_key():
    with pytest.raises(ConfigError, match=r"device cuda \(run\.device, --device\): torch sees no GPU"):
        distributed.setup("cuda")
