"""Weights come in from files, and every load says, part by part, what came from where.

What is neither loaded, nor frozen and held by an external file, nor fresh by design is an error, never a surprise.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bita.errors import UserError
from bita.models.base import BitaModel, part_of
from bita.models.layouts import TRUNK, Renamed, as_bridge, rename, rename_vision
from bita.models.tokenizers import not_there
from bita.models.vision import resize_positions

PART_NAMES = {
    "visual_encoder": "vision",
    "ift": "IFT",
    "qformer": "Q-Former",
    "query_tokens": "queries",
    "opt_model": "language model",
}
TEXT_SIDE = (
    ".word_embedding.",
    ".position_embedding.",
    ".text_ffn.",
    "mlm_head.",
    "text_proj.",
    "vision_proj.",
)
STAGE_1_ONLY = ("temp", "itm_head.", "bootstrap.", "vision_proj.", "text_proj.", "mlm_head.")


@dataclass
class LoadReport:
    """What a load did, part by part."""

    source: str
    layout: str
    loaded: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)
    notes: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line: part, tensors loaded of tensors there are, and why the rest is not."""
        parts = []
        for part, total in self.total.items():
            note = f" ({self.notes[part]})" if part in self.notes else ""
            parts.append(f"{PART_NAMES.get(part, part)} {self.loaded[part]}/{total}{note}")
        unused = f"; {len(self.unused)} not used ({_summary(self.unused)})" if self.unused else ""
        return f"weights from {self.source} [{self.layout}]: {', '.join(parts)}{unused}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pth file that holds nothing but data.

    Raises:
        UserError: the file is missing, damaged, or would run code.
    """
    if not path.is_file():
        raise UserError(f"weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"weights {path}: refused, since it holds more than tensors and loading it could run code; "
            "ask its author for a .safetensors file"
        ) from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"weights {path}: not a readable checkpoint ({reason}); fetch it again") from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"weights {path}: holds no tensors under 'model', 'state_dict' or at its top level")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def load_checkpoint(model: BitaModel, path: Path) -> LoadReport:
    """Load a run's checkpoint, or a published one, into a model.

    Args:
        model: takes the weights in place.
        path: a file; a folder of a checkpoint of ours holds `model.safetensors`.

    Raises:
        UserError: a shape differs, or a trained part would stay random without being fresh by design.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    renamed, mapped = _fit_bridge(rename(read_tensors(file)), model, path)
    report = _copy_in(model, renamed, str(path))
    from_stage_1 = any(name.startswith("text_proj.") for name in renamed.tensors)
    tied = model.tied_names()
    for name in sorted(set(model.state_dict()) - set(renamed.tensors) - tied):
        part = part_of(name)
        if part in model.external:
            report.notes[part] = f"from {model.external[part]}, not in file"
        elif part == "opt_proj" and from_stage_1:
            report.notes[part] = "fresh: stage 1 has none"
        elif part == "opt_model" and from_stage_1 and not model.cfg.freeze_lm:
            report.notes[part] = (
                f"from {model.cfg.opt_model}" if model.cfg.opt_model else "fresh: trained along"
            )
        elif mapped and (".mix." in name or ".cross." in name):
            report.notes[part] = (
                "fresh where the Q-Former has none: Fourier norms, odd layers' cross-attention"
            )
        elif renamed.layout.startswith("BLIP-2") and part in ("opt_proj", "itm_head", "mlm_head", "temp"):
            report.notes[part] = "fresh"
        else:
            raise UserError(_incomplete(model, path, part, name))
    return report


def _fit_bridge(renamed: Renamed, model: BitaModel, path: Path) -> tuple[Renamed, bool]:
    """A file's tensors for the model's bridge, and whether they were made for the other one.

    Raises:
        UserError: they were, and the configuration does not say that this is meant.
    """
    bridge = model.cfg.bridge
    held = {part_of(name) for name in renamed.tensors} & {"ift", "qformer"}
    if not held or bridge in held:
        return renamed, False
    if bridge == "ift" and model.cfg.init_map == "qformer_to_ift":
        return as_bridge(renamed, bridge), True
    other = held.pop()
    hint = " (or model.init_map=qformer_to_ift to take what both have)" if bridge == "ift" else ""
    raise UserError(
        f"weights {path}: hold the {PART_NAMES[other]}, and model.bridge is {bridge}; set model.bridge={other}{hint}"
    )


def load_vision(model: BitaModel, path: Path) -> LoadReport:
    """Load the vision encoder alone; as many blocks as the model keeps are taken, from the first."""
    renamed = rename_vision(read_tensors(path))
    expected = {name for name in model.state_dict() if name.startswith(TRUNK)}
    missing = expected - set(renamed.tensors)
    if missing:
        raise UserError(
            f"model.vit_weights {path}: {len(missing)} of {len(expected)} tensors of {model.cfg.vit_model} are not "
            f"in it, e.g. {min(missing).removeprefix(TRUNK)}; is it another encoder's file, or one with fewer blocks?"
        )
    report = _copy_in(model, renamed, str(path))
    report.total = Counter({"visual_encoder": report.total["visual_encoder"]})
    if model.cfg.freeze_vit:
        model.external["visual_encoder"] = str(path)
    return report


def load_bert(model: BitaModel, source: str) -> LoadReport:
    """Start the bridge from BERT where names match, then copy the text feed-forward to the queries' one.

    The word embedding has a row more than BERT's, for [DEC]; that row stays fresh.
    """
    from transformers import BertForMaskedLM

    bridge = model.cfg.bridge
    try:
        renamed = rename(dict(BertForMaskedLM.from_pretrained(source).state_dict()))
        renamed = as_bridge(renamed, bridge)
    except Exception as error:
        raise not_there("model.text_model", source, error) from error
    own = model.state_dict()
    for name in (f"{bridge}.word_embedding.weight", "mlm_head.bias"):
        if name in own and name in renamed.tensors:
            padded = own[name].clone()
            if padded.shape[1:] != renamed.tensors[name].shape[1:]:
                continue  # another width: refused below, with both shapes
            padded[: len(renamed.tensors[name])] = renamed.tensors[name]
            renamed.tensors[name] = padded
    report = _copy_in(model, renamed, source)
    if hasattr(model.bridge, "word_embedding"):
        model.bridge.copy_text_ffn_to_queries()
        fresh = "cross-attention and Fourier norms" if bridge == "ift" else "cross-attention"
        report.notes[bridge] = f"queries' feed-forward copied from the text's; {fresh} fresh"
    for part in set(report.total) - {bridge, "mlm_head"}:
        del report.total[part]
    return report


@torch.no_grad()
def _copy_in(model: BitaModel, renamed: Renamed, source: str) -> LoadReport:
    """Copy every tensor that has a place, checking shapes first, so that a refusal changes nothing."""
    own, tied = model.state_dict(), model.tied_names()
    report = LoadReport(source, renamed.layout)
    report.total.update(part_of(name) for name in own if name not in tied)
    report.unused = [name for name in renamed.no_place if not _is_copy(name)]
    copies: list[tuple[str, Tensor]] = []
    for name, tensor in renamed.tensors.items():
        if name not in own:
            report.unused.append(name)
            continue
        if name.endswith(".pos_embed") and tensor.shape[-1] == own[name].shape[-1]:
            clip = model.cfg.vit_model == "clip_L"
            tensor = resize_positions(tensor, own[name].shape[1], align_corners=clip)
        if own[name].shape != tensor.shape:
            raise UserError(
                f"weights {source}: {name} is {tuple(tensor.shape)} there and {tuple(own[name].shape)} in the model; "
                "use the configuration that the file was trained with"
            )
        copies.append((name, tensor))
    for name, tensor in copies:
        own[name].copy_(tensor)
        report.loaded[part_of(name)] += name not in tied
    return report


def _is_copy(name: str) -> bool:
    """Position ids and tied copies are expected in published files, and not worth a word."""
    return name.endswith("position_ids") or "predictions.decoder" in name


def _incomplete(model: BitaModel, path: Path, part: str, name: str) -> str:
    label = PART_NAMES.get(part, part)
    hint = "use a checkpoint of this architecture"
    if part == "visual_encoder":
        hint = "set model.vit_weights to the encoder's file"
    elif part == "opt_model":
        hint = "set model.opt_model to the language model's folder"
    return f"weights {path}: {label} is not complete in it, e.g. {name} is missing; {hint}"


def _summary(names: Iterable[str]) -> str:
    """What the unused tensors are, by kind."""
    kinds: Counter[str] = Counter()
    for name in names:
        if any(piece in name for piece in TEXT_SIDE) or name.startswith(STAGE_1_ONLY):
            kinds["text side and contrastive head"] += 1
        elif ".attention." in name and name.startswith(("ift.", "qformer.")):
            kinds["self-attention"] += 1
        elif "visual_encoder" in name or name.startswith(TRUNK):
            kinds["further vision blocks"] += 1
        elif name.startswith("vision_model."):
            kinds["vision encoder by transformers' names"] += 1
        else:
            kinds[name] += 1
    return ", ".join(f"{kind}: {count}" for kind, count in kinds.items())
