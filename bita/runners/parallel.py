"""How a model is spread over processes (`run.parallel`).

ddp    every process holds the whole model; gradients are averaged (DistributedDataParallel).
fsdp   besides, the language model is cut up, frozen or not: each process holds its share of every weight, and a
       block's weights are gathered when it is computed (FSDP2). The other parts, which are small, stay whole.

On one process both are the plain model. An evaluation gathers the language model once, and frees it afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from bita import distributed
from bita.config.run import RunConfig
from bita.models.base import BitaModel

M = TypeVar("M", bound=BitaModel)


def place(model: M, device: torch.device, run: RunConfig) -> M:
    """Move a model to its device; with `fsdp` a block at a time, of which only this process's share stays."""
    if run.parallel == "fsdp" and distributed.world_size() > 1:
        shard(model, device)
    return model.place(device)


def shard(model: BitaModel, device: torch.device) -> None:
    """Cut the language model's weights up: each of its blocks by itself, embeddings and the rest with the model."""
    decoder = model.language_model()
    assert decoder is not None  # checked with the configuration
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
    for block in max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters())):
        take_from_main(block.to(device))
        fully_shard(block, mesh=mesh)
    take_from_main(decoder.to(device))
    own = {id(p) for p in decoder.parameters()}
    fully_shard(model, mesh=mesh, ignored_params={p for p in model.parameters() if id(p) not in own})


def take_from_main(module: nn.Module) -> None:
    """Overwrite weights that are not cut up with the main process's, as DDP does: fresh ones differ."""
    for tensor in (*module.parameters(), *module.buffers()):
        if not isinstance(tensor, DTensor):
            dist.broadcast(tensor.detach(), src=0)


def share_statistics(model: nn.Module) -> None:
    """Overwrite the running statistics of batch norms with the main process's, which are those that are saved.

    DDP does so before a step, so that after it each process has its own. With one process there is nothing to do.
    """
    if distributed.world_size() == 1:
        return
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            take_from_main(module)


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with the gradients of its whole weights averaged over processes, where there are several."""
    if distributed.world_size() == 1:
        return model
    named = model.named_parameters(remove_duplicate=False)
    sharded = [name for name, p in named if isinstance(p, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sharded)
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        broadcast_buffers=any(isinstance(module, _BatchNorm) for module in model.modules()),
    )


@contextlib.contextmanager
def exchange(net: nn.Module, wanted: bool) -> Iterator[None]:
    """Inside it, a backward pass exchanges gradients between processes only where that is wanted."""
    with contextlib.ExitStack() as stack:
        if isinstance(net, DistributedDataParallel):
            if not wanted:
                stack.enter_context(net.no_sync())
            if isinstance(net.module, FSDPModule):
                net.module.set_requires_gradient_sync(wanted)
        yield


@contextlib.contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Inside it every process holds the whole model, so that each can go its own way: for evaluation."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


def split(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Whole tensors and cut-up ones apart, since no operation takes a list of both; without empty lists."""
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for tensor in tensors:
        parts[isinstance(tensor, DTensor)].append(tensor)
    return [part for part in parts if part]


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Norm of all tensors together, the same on every process; a scalar on their device."""
    norms = [torch.nn.utils.get_total_norm(part) for part in split(tensors)]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return norms[0] if len(norms) == 1 else torch.nn.utils.get_total_norm(norms)


def collect(tree: Any) -> Any:
    """A tree whose cut-up tensors are whole and in main memory, on the main process; every process must call it."""

    def whole_one(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        tensor = value.full_tensor()
        return tensor.cpu() if distributed.is_main() else None

    return tree_map(whole_one, tree)


def cut_like(tensor: Tensor, target: Tensor) -> Tensor:
    """Return this process's share of a whole tensor, where the target is cut up; all processes hold the same one."""
    if not isinstance(target, DTensor):
        return tensor
    tensor = tensor.to(target.device)
    return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)
