"""Tensor names of the files in the wild, and ours: one table a layout.

A layout is recognised by a name that only it has; its rules rewrite a foreign name into ours, or into None when
the tensor has no place here (position ids, tied copies, CLIP's last projection), and backwards for export.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bita.errors import UserError

Rules = list[tuple[str, str | None]]
"""(foreign prefix, our prefix) pairs, `{n}` standing for a layer's number; the first that fits counts."""

# Published (BITA, BLIP-2, BERT) → ours, after the prefix `Fformer.` or `Qformer.`; with the latter, `ift.` becomes
# `qformer.`.
BRIDGE_RULES: Rules = [
    ("bert.embeddings.position_ids", None),
    ("cls.predictions.decoder.", None),
    ("bert.embeddings.word_embeddings.", "ift.word_embedding."),
    ("bert.embeddings.position_embeddings.", "ift.position_embedding."),
    ("bert.embeddings.LayerNorm.", "ift.embedding_norm."),
    ("bert.encoder.layer.{n}.fourier.output.LayerNorm.", "ift.layers.{n}.mix.norm."),
    ("bert.encoder.layer.{n}.attention.self.query.", "ift.layers.{n}.attention.query."),
    ("bert.encoder.layer.{n}.attention.self.key.", "ift.layers.{n}.attention.key."),
    ("bert.encoder.layer.{n}.attention.self.value.", "ift.layers.{n}.attention.value."),
    ("bert.encoder.layer.{n}.attention.output.dense.", "ift.layers.{n}.attention.output."),
    ("bert.encoder.layer.{n}.attention.output.LayerNorm.", "ift.layers.{n}.attention.norm."),
    ("bert.encoder.layer.{n}.crossattention.self.query.", "ift.layers.{n}.cross.query."),
    ("bert.encoder.layer.{n}.crossattention.self.key.", "ift.layers.{n}.cross.key."),
    ("bert.encoder.layer.{n}.crossattention.self.value.", "ift.layers.{n}.cross.value."),
    ("bert.encoder.layer.{n}.crossattention.output.dense.", "ift.layers.{n}.cross.output."),
    ("bert.encoder.layer.{n}.crossattention.output.LayerNorm.", "ift.layers.{n}.cross.norm."),
    ("bert.encoder.layer.{n}.intermediate_query.dense.", "ift.layers.{n}.query_ffn.up."),
    ("bert.encoder.layer.{n}.output_query.dense.", "ift.layers.{n}.query_ffn.down."),
    ("bert.encoder.layer.{n}.output_query.LayerNorm.", "ift.layers.{n}.query_ffn.norm."),
    ("bert.encoder.layer.{n}.intermediate.dense.", "ift.layers.{n}.text_ffn.up."),
    ("bert.encoder.layer.{n}.output.dense.", "ift.layers.{n}.text_ffn.down."),
    ("bert.encoder.layer.{n}.output.LayerNorm.", "ift.layers.{n}.text_ffn.norm."),
    ("cls.predictions.transform.dense.", "mlm_head.dense."),
    ("cls.predictions.transform.LayerNorm.", "mlm_head.norm."),
    ("cls.predictions.bias", "mlm_head.bias"),
]

# BLIP-2 in transformers → BLIP-2 as published. Its vision encoder's names are not among them.
HUGGING_FACE_BLIP_2_RULES: Rules = [
    ("qformer.encoder.layer.{n}.attention.attention.", "Qformer.bert.encoder.layer.{n}.attention.self."),
    (
        "qformer.encoder.layer.{n}.crossattention.attention.",
        "Qformer.bert.encoder.layer.{n}.crossattention.self.",
    ),
    ("qformer.encoder.", "Qformer.bert.encoder."),
    ("qformer.layernorm.", "Qformer.bert.embeddings.LayerNorm."),
    ("embeddings.", "Qformer.bert.embeddings."),
    ("vision_model.post_layernorm.", "ln_vision."),
    ("vision_projection.", "vision_proj."),
    ("text_projection.", "text_proj."),
    ("language_projection.", "opt_proj."),
    ("language_model.", "opt_model."),
]

# LAVIS's clip_vit_L.pth → timm's names; OpenAI's CLIP has the same under `visual.`.
CLIP_RULES: Rules = [
    ("class_embedding", "cls_token"),
    ("positional_embedding", "pos_embed"),
    ("conv1.", "patch_embed.proj."),
    ("ln_pre.", "norm_pre."),
    ("ln_post.", None),
    ("proj", None),
    ("transformer.resblocks.{n}.ln_1.", "blocks.{n}.norm1."),
    ("transformer.resblocks.{n}.ln_2.", "blocks.{n}.norm2."),
    ("transformer.resblocks.{n}.attn.in_proj_", "blocks.{n}.attn.qkv."),
    ("transformer.resblocks.{n}.attn.out_proj.", "blocks.{n}.attn.proj."),
    ("transformer.resblocks.{n}.mlp.c_fc.", "blocks.{n}.mlp.fc1."),
    ("transformer.resblocks.{n}.mlp.c_proj.", "blocks.{n}.mlp.fc2."),
]

TRUNK = "visual_encoder.trunk."


@dataclass(frozen=True)
class Renamed:
    """A file's tensors under our names."""

    layout: str
    tensors: dict[str, Tensor]
    no_place: list[str]
    """Names, as in the file, of tensors that have no counterpart here."""


def rename(tensors: dict[str, Tensor]) -> Renamed:
    """A whole model's tensors → our names, whatever published layout they are in.

    Raises:
        UserError: two tensors would get one name.
    """
    layout = _layout_of(tensors)
    if layout == "ours":
        return Renamed(layout, dict(tensors), [])
    if layout == "BLIP-2 in transformers":
        tensors = {_apply(HUGGING_FACE_BLIP_2_RULES, name): tensor for name, tensor in tensors.items()}  # type: ignore[misc]
    renamed = _rename_each(layout, tensors, _our_name)
    return as_bridge(renamed, "qformer") if layout.startswith("BLIP-2") else renamed


def as_bridge(renamed: Renamed, bridge: str) -> Renamed:
    """The same with the bridge's tensors under the name of `bridge`, `ift` or `qformer`."""
    tensors = {
        f"{bridge}.{name.split('.', 1)[1]}" if name.startswith(("ift.", "qformer.")) else name: tensor
        for name, tensor in renamed.tensors.items()
    }
    return replace(renamed, tensors=tensors)


def rename_vision(tensors: dict[str, Tensor]) -> Renamed:
    """A vision encoder's tensors (LAVIS's or OpenAI's CLIP, or timm's own names) → our names."""
    if any(name.startswith("visual.") for name in tensors):  # OpenAI: text side beside
        tensors = {n.removeprefix("visual."): t for n, t in tensors.items() if n.startswith("visual.")}
    if "positional_embedding" in tensors:
        return _rename_each("CLIP", tensors, lambda name: _our_name("visual_encoder." + name))
    return _rename_each("timm", tensors, lambda name: TRUNK + name)


def published(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the published names and shapes, tied copies and position ids included."""
    renamed = {}
    bridge = "Qformer." if any(name.startswith("qformer.") for name in ours) else "Fformer."
    ours = as_bridge(Renamed("ours", ours, []), "ift").tensors
    for name, tensor in ours.items():
        vision = name.startswith(TRUNK)
        rules = _inverse(CLIP_RULES) if vision else _inverse(BRIDGE_RULES)
        foreign = _apply(rules, name.removeprefix(TRUNK)) or name
        if vision:
            foreign = "visual_encoder." + foreign
        elif foreign != name:
            foreign = bridge + foreign
        if name.endswith(".cls_token"):
            tensor = tensor.flatten()
        elif name.endswith(".pos_embed"):
            tensor = tensor.squeeze(0)
        renamed[foreign] = tensor
    positions = ours.get("ift.position_embedding.weight")
    if positions is not None:
        renamed[bridge + "bert.embeddings.position_ids"] = torch.arange(len(positions))[None]
    if "mlm_head.bias" in ours:
        renamed[bridge + "cls.predictions.decoder.weight"] = ours["ift.word_embedding.weight"]
        renamed[bridge + "cls.predictions.decoder.bias"] = ours["mlm_head.bias"]
    return renamed


def _layout_of(tensors: dict[str, Tensor]) -> str:
    if any(name.startswith("Fformer.") for name in tensors):
        return "BITA as published"
    if any(name.startswith("Qformer.") for name in tensors):
        return "BLIP-2"
    if any(name.startswith("qformer.encoder.") for name in tensors):
        return "BLIP-2 in transformers"
    if any(name.startswith("bert.") for name in tensors):
        return "BERT"
    return "ours"


def _rename_each(layout: str, tensors: dict[str, Tensor], our_name: Callable[[str], str | None]) -> Renamed:
    renamed: dict[str, Tensor] = {}
    no_place = []
    for name, tensor in tensors.items():
        ours = our_name(name)
        if ours is None:
            no_place.append(name)
            continue
        if ours in renamed:
            raise UserError(f"weights: {name} and another tensor would both be {ours}")
        if ours.endswith((".cls_token", ".pos_embed")) and tensor.ndim < 3:
            tensor = tensor.reshape(1, -1, tensor.shape[-1])
        renamed[ours] = tensor
    return Renamed(layout, renamed, no_place)


def _our_name(name: str) -> str | None:
    if name.startswith("visual_encoder.") and not name.startswith(TRUNK):
        ours = _apply(CLIP_RULES, name.removeprefix("visual_encoder."))
        return None if ours is None else TRUNK + ours
    return _apply(BRIDGE_RULES, name.removeprefix("Fformer.").removeprefix("Qformer."))


def _apply(rules: Rules, name: str) -> str | None:
    """Rewrite a name's beginning by the first rule that fits; a name that none fits stays."""
    for before, after in rules:
        match = re.match(re.escape(before).replace(r"\{n\}", r"(\d+)"), name)
        if match and after is None:
            return None
        if match and after is not None:
            return after.replace("{n}", "".join(match.groups())) + name[match.end() :]
    return name


def _inverse(rules: Rules) -> Rules:
    return [(after, before) for before, after in rules if after is not None]
