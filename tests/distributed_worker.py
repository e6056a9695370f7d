"""What each process of `test_distributed.py` does; writes what it saw to OUT/RANK.pt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bita import distributed
from bita.errors import UserError


def contrast(x: Tensor, with_grad: bool) -> Tensor:
    """A loss whose rows look at the rows of all processes."""
    everyone = distributed.gather_features(x, with_grad)
    own = distributed.rank() * len(x) + torch.arange(len(x))
    return torch.nn.functional.cross_entropy(x @ everyone.T, own)


def gradient(images: Tensor, weight: Tensor, with_grad: bool) -> tuple[Tensor, Tensor]:
    """Loss and gradient, averaged over processes as DDP does."""
    weight = weight.clone().requires_grad_(True)
    rows = len(images) // distributed.world_size()
    share = images[distributed.rank() * rows :][:rows]
    loss = contrast(torch.tanh(share @ weight), with_grad)
    loss.backward()
    losses, gradients = zip(*distributed.gather_objects((loss.detach(), weight.grad)), strict=True)
    return torch.stack(losses).mean(), torch.stack(gradients).mean(dim=0)


def look() -> dict[str, Any]:
    """What this process sees of the others."""
    generator = torch.Generator().manual_seed(0)
    images, weight = torch.randn(6, 5, generator=generator), torch.randn(5, 4, generator=generator)
    rank = distributed.rank()

    def fails_on_main() -> None:
        raise UserError(f"no such file, says rank {rank}")

    problem = ""
    try:
        distributed.on_main(fails_on_main)
    except UserError as error:
        problem = str(error)
    gathered = distributed.gather_features(torch.full((2, 3), float(rank), requires_grad=True))
    with distributed.alone():
        alone = (
            distributed.world_size(),
            distributed.rank(),
            distributed.gather_features(torch.ones(1)).tolist(),
        )
    return {
        "world_size": distributed.world_size(),
        "is_main": distributed.is_main(),
        "objects": distributed.gather_objects(f"rank {rank}"),
        "from_main": distributed.from_main(rank),
        "on_main": distributed.on_main(lambda: rank),
        "highest": distributed.highest(rank * 10),
        "problem": problem,
        "gathered": gathered,
        "requires_grad": gathered.requires_grad,
        "alone": alone,
        "with_grad": gradient(images, weight, with_grad=True),
        "without_grad": gradient(images, weight, with_grad=False),
    }


if __name__ == "__main__":
    distributed.setup("cpu")
    torch.save(look(), Path(sys.argv[1]) / f"{distributed.rank()}.pt")
    distributed.shutdown()
