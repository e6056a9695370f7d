"""What a load of weights did, or why it is refused, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from bita.models.base import BitaModel
from bita.registry import models
from bita.weights.layouts import TRUNK

PART_NAMES = {
    "visual_encoder": "vision",
    "ift": "IFT",
    "qformer": "Q-Former",
    "query_tokens": "queries",
    "opt_model": "language model",
    "lora": "LoRA",
}
TEXT_SIDE = (
    ".word_embedding.",
    ".position_embedding.",
    ".text_ffn.",
    "mlm_head.",
    "text_proj.",
    "vision_proj.",
)
VOCABULARY = ("word_embedding.weight", "mlm_head.bias", "embed_tokens.weight", "lm_head.weight", "wte.weight")
STAGE_1_ONLY = ("temp", "itm_head.", "word_head.", "vision_proj.", "text_proj.", "mlm_head.")


@dataclass
class LoadReport:
    """What a load did, part by part.

    Attributes:
        place: the prefix under which they stood in the file, such as `state_dict.module.`.
        names: our names of the tensors that came whole from the file.
        unused: names of its tensors that found no place.
    """

    source: str
    layout: str
    place: str = ""
    names: set[str] = field(default_factory=set)
    loaded: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)
    notes: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return one line: part, tensors loaded of tensors there are, and why the rest is not."""
        parts = []
        for part, total in self.total.items():
            note = f" ({self.notes[part]})" if part in self.notes else ""
            parts.append(f"{PART_NAMES.get(part, part)} {self.loaded[part]}/{total}{note}")
        unused = f"; {len(self.unused)} not used ({_summary(self.unused)})" if self.unused else ""
        under = f" under {self.place}" if self.place else ""
        return f"weights from {self.source} [{self.layout}]{under}: {', '.join(parts)}{unused}"


def misfit(model: BitaModel, source: str, name: str, tensor: Tensor, target: Tensor) -> str:
    """Return why a tensor does not fit: vocabulary, width, or something else."""
    if not tensor.numel() and target.numel():
        return (
            f"weights {source}: {name} is empty there, as where processes share the weights (ZeRO-3): put the shares "
            "together with its script: python zero_to_fp32.py FOLDER FILE"
        )
    shapes = f"{name} is {tuple(tensor.shape)} there and {tuple(target.shape)} in the model"
    if tensor.ndim == target.ndim and tensor.shape[1:] == target.shape[1:] and name.endswith(VOCABULARY):
        kind = "vocabulary"
        folders = models.config(model.cfg.arch).folders
        hint = f"it has {len(tensor)} words there and {len(target)} here: name the tokenizer that it was trained with"
        for key in [key for key in folders if "tokenizer" in key]:
            hint += f": model.{key}=FOLDER, the folder {folders[key]} of its run"
    elif name.startswith(TRUNK):
        kind = "vision encoder"
        hint = f"model.vit_model={model.cfg.vit_model} is another width or patch size: name the encoder of this file"
    else:
        kind, hint = "sizes", "use the configuration that the file was trained with"
    return f"weights {source}: other {kind}: {shapes}; {hint}"


def incomplete(path: Path, part: str, name: str) -> str:
    """Return why a file is refused that lacks a tensor of a part, and what would hold it."""
    label = PART_NAMES.get(part, part)
    hint = "use a checkpoint of this architecture"
    if part == "visual_encoder":
        hint = "set model.vit_weights to the encoder's file"
    elif part == "opt_model":
        hint = "set model.opt_model to the language model's folder"
    return f"weights {path}: {label} is not complete in it, e.g. {name} is missing; {hint}"


def _summary(names: Iterable[str]) -> str:
    """Return what the unused tensors are, by kind."""
    kinds: Counter[str] = Counter()
    for name in names:
        if any(piece in name for piece in TEXT_SIDE) or name.startswith(STAGE_1_ONLY):
            kinds["text side and contrastive head"] += 1
        elif ".attention." in name and name.startswith(("ift.", "qformer.")):
            kinds["self-attention"] += 1
        elif "visual_encoder" in name or name.startswith(TRUNK):
            kinds["vision past the last kept block"] += 1
        elif name.startswith("vision_model."):
            kinds["vision encoder by transformers' names"] += 1
        else:
            kinds[name] += 1
    return ", ".join(f"{kind}: {count}" for kind, count in kinds.items())
