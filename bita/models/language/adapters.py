"""LoRA beside a frozen language model, through `peft`: added, saved under plain names, merged away.

In state dictionaries a layer keeps the name that it has without LoRA, and `lora_A.weight`, `lora_B.weight` stand beside
its `weight`: a checkpoint without LoRA loads into a model with it, and one reads in a file what is what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bita.config.parts import LoraSize
from bita.errors import ConfigError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "default"


def add_lora(model: PreTrainedModel, size: LoraSize) -> None:
    """Put trained low-rank weights (float32, starting without effect) beside a frozen model's, in place.

    Raises:
        ConfigError: peft is not installed, or finds no layer of the names given.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("model.lora: needs the package peft; pip install peft") from error
    wanted: dict[str, Any] = {"r": size.r, "lora_alpha": size.alpha, "lora_dropout": size.dropout}
    try:
        try:
            inject_adapter_in_model(LoraConfig(**wanted, target_modules=size.target_modules), model, ADAPTER)
        except ValueError:
            if size.target_modules is not None:
                raise
            # peft knows no layers of this family: all linear ones but the head
            inject_adapter_in_model(LoraConfig(**wanted, target_modules="all-linear"), model, ADAPTER)
    except Exception as error:
        raise ConfigError(f"model.lora.target_modules={size.target_modules}: {first_line(error)}") from error
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        assert parameter.requires_grad == (".lora_" in name)
    model.register_state_dict_post_hook(_to_plain_names)
    model.register_load_state_dict_pre_hook(_from_plain_names)


def merge_lora(model: nn.Module) -> None:
    """Add every low-rank product to the weight that it stands beside, and leave plain layers; in place."""
    for parent, name, layer in layers_to_replace(model, _has_lora):
        layer.merge()
        setattr(parent, name, layer.get_base_layer())


def layers_to_replace(
    model: nn.Module, wanted: Callable[[nn.Module], bool]
) -> Iterator[tuple[nn.Module, str, Any]]:
    """(parent, name in it, layer) of every layer that is wanted; another may be put in its place meanwhile."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if wanted(child):
                yield parent, name, child


def lora_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Return the layers that have LoRA weights."""
    return filter(_has_lora, model.modules())


def _has_lora(module: nn.Module) -> bool:
    return hasattr(module, "lora_dropout")


def plain_name(name: str) -> str:
    """Return a parameter's name without what peft puts into it."""
    return name.replace(".base_layer.", ".").replace(f".{ADAPTER}.", ".")


def _to_plain_names(model: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    for name in _names(model):
        plain = plain_name(name)
        if plain != name and prefix + name in state:
            state[prefix + plain] = state.pop(prefix + name)


def _from_plain_names(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in _names(model):
        plain = plain_name(name)
        if plain != name and prefix + plain in state:
            state[prefix + name] = state.pop(prefix + plain)


def _names(model: nn.Module) -> list[str]:
    """Of all weights and buffers; tied ones under each of their names."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return [*names, *(name for name, _ in model.named_buffers())]
