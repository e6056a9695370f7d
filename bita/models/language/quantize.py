"""A language model's linear layers in 8 or 4 bit, for writing captions with less memory.

int8: weights only, one scale an output channel (torchao). int4: NF4, one scale for 64 weights (bitsandbytes).
Embeddings, norms and the output head stay as they are. Only for inference: nothing of it goes into a checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bita.errors import ConfigError
from bita.models.language.adapters import layers_to_replace

PACKAGES = {"int8": "torchao", "int4": "bitsandbytes"}


def quantize(model: Any, kind: str, device: torch.device) -> None:
    """Quantise a language model of transformers in place and move it to `device`.

    Args:
        model: its linear layers in the precision that they compute in; GPT-2's transposed ones are turned first.
        kind: `int8` or `int4`.
        device: where it is going to be used; 4 bit is made there.

    Raises:
        ConfigError: the package is not installed.
    """
    turn_transposed(model)
    head = model.get_output_embeddings()
    try:
        if kind == "int8":
            from torchao.quantization import Int8WeightOnlyConfig, quantize_

            quantize_(model, Int8WeightOnlyConfig(), lambda m, _: isinstance(m, nn.Linear) and m is not head)
            model.to(device)
        else:
            _to_nf4(model, head, device)
    except ImportError as error:
        package = PACKAGES[kind]
        raise ConfigError(
            f"model.lm_quantize={kind}: needs the package {package}; pip install {package}"
        ) from error


def _to_nf4(model: nn.Module, head: nn.Module, device: torch.device) -> None:
    """Layer by layer, so that no more than one layer is there twice."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parent, name, layer in layers_to_replace(model, lambda m: isinstance(m, nn.Linear)):
        if layer is head:
            continue
        dtype = layer.weight.dtype
        small = Linear4bit(layer.in_features, layer.out_features, compute_dtype=dtype, device="meta")
        small.weight = Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4")
        small.bias = layer.bias
        setattr(parent, name, small.to(device))
    model.to(device)


def turn_transposed(model: nn.Module) -> None:
    """GPT-2's `Conv1D`, a linear layer whose weight is stored transposed → `nn.Linear`, in place."""
    from transformers.pytorch_utils import Conv1D

    for parent, name, layer in layers_to_replace(model, lambda m: isinstance(m, Conv1D)):
        inputs, outputs = layer.weight.shape
        linear = nn.Linear(inputs, outputs, device="meta")
        linear.weight = nn.Parameter(layer.weight.detach().T.contiguous(), requires_grad=False)
        linear.bias = layer.bias
        setattr(parent, name, linear)


def size_in_bytes(model: nn.Module) -> int:
    """Bytes of all weights and buffers, shared ones once, quantised ones with their scales."""
    seen: dict[int, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        for part in _plain_parts(tensor):
            seen[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
    return sum(seen.values())


def _plain_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors that a weight consists of: itself; or values and scales of torchao or bitsandbytes."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [getattr(tensor, name) for name in names]
    state = getattr(tensor, "quant_state", None)
    return [tensor, *([] if state is None else [state.absmax, state.code])]
