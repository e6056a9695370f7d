"""Weights come in from files, and every load says, part by part, what came from where.

What is neither loaded, nor frozen and held by an external file, nor fresh by design is an error, never a surprise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bita.errors import UserError
from bita.models.base import BitaModel, part_of
from bita.models.language.tokenizers import LANGUAGE_MODEL_FOLDER, not_there
from bita.packages import unpacked
from bita.weights.files import WeightFile
from bita.weights.layouts import (
    THIRDS,
    TRUNK,
    VISION,
    VISION_LAYOUTS,
    Renamed,
    as_bridge,
    rename,
    rename_own_vision,
    rename_vision,
    third_of,
)
from bita.weights.report import PART_NAMES, LoadReport, incomplete, misfit
from bita.weights.wrappers import choose, places

DEPTHS = {
    re.compile(rf"{re.escape(TRUNK)}blocks\.(\d+)\."): "vit_depth",
    re.compile(r"(?:ift|qformer)\.layers\.(\d+)\."): "bridge_size.layers",
}
"""Names that carry a layer's number, and the key of how many there are."""
BERT_MARK = "bert.embeddings.word_embeddings.weight"


def load_checkpoint(model: BitaModel, path: Path, choice: str | None = None) -> LoadReport:
    """Load a run's checkpoint, an exported folder, or a published file, into a model.

    Args:
        model: takes the weights in place.
        path: a file, or a folder of one (a checkpoint of ours holds `model.safetensors`).
        choice: which weights, where it holds several (`bita.weights.wrappers`).

    Raises:
        UserError: a shape differs, or a trained part would stay random without being fresh by design.
    """
    file = WeightFile(path)
    shape = model.query_tokens.shape
    chosen = choose(
        f"weights {path}",
        file,
        places(file, ["query_tokens"]),
        choice,
        rename,
        lambda renamed: renamed.tensors["query_tokens"].shape == shape,
    )
    renamed, mapped = _fit_bridge(chosen, model, path)
    _check_depths(model, renamed, str(path))
    report = _check(model, renamed, str(path))
    lora = [name for name in report.unused if name.endswith(".lora_A.weight")]
    if lora:
        raise UserError(
            f"weights {path}: its language model has LoRA weights of rank {len(renamed.tensors[lora[0]])} and this one "
            "has none; set model.lora as in the run that wrote it"
        )
    for name in sorted(set(model.state_dict()) - report.names - model.tied_names()):
        report.notes[part_of(name)] = _excuse(model, path, renamed, name, mapped=mapped)
    _copy_in(model, renamed)
    # What the file holds whole may be other weights than the external ones, and is now their only place.
    for part in [part for part in model.external if report.loaded[part] == report.total[part]]:
        del model.external[part]
    return report


def _excuse(model: BitaModel, path: Path, renamed: Renamed, name: str, *, mapped: bool) -> str:
    """Return why a tensor need not be in a file; raises UserError where its part would stay random for no reason."""
    part = part_of(name)
    from_stage_1 = any(other.startswith("text_proj.") for other in renamed.tensors)
    if part in model.sources and not (part == "opt_model" and _is_another(path, model)):
        return f"from {model.sources[part]}, not in file"
    if part == "lora":
        return "fresh, without effect before training"
    if part == "opt_proj" and from_stage_1:
        return "fresh: stage 1 has none"
    if part == "opt_model" and from_stage_1 and _is_trained(model, part):
        return "fresh: trained along"
    if mapped and (".mix." in name or ".cross." in name):
        return "fresh where the Q-Former has none: Fourier norms, odd layers' cross-attention"
    if renamed.layout.startswith("BLIP-2") and part in ("opt_proj", "itm_head", "mlm_head", "temp"):
        return "fresh"
    raise UserError(incomplete(path, part, name))


def _is_another(path: Path, model: BitaModel) -> bool:
    """Whether a trained language model would not be the one in the exported folder, which belongs to its weights."""
    beside = path / LANGUAGE_MODEL_FOLDER
    return (
        _is_trained(model, "opt_model")
        and beside.is_dir()
        and Path(model.sources["opt_model"]).resolve() != beside.resolve()
    )


def _is_trained(model: BitaModel, part: str) -> bool:
    return any(p.requires_grad for name, p in model.named_parameters() if part_of(name) == part)


def _fit_bridge(renamed: Renamed, model: BitaModel, path: Path) -> tuple[Renamed, bool]:
    """Return a file's tensors for the model's bridge, and whether they were made for the other one.

    Raises:
        UserError: they were, and the configuration does not say that this is meant.
    """
    bridge = model.cfg.bridge
    held = {part_of(name) for name in renamed.tensors} & {"ift", "qformer"}
    if not held or bridge in held:
        return renamed, False
    other = held.pop()
    mapping = model.bridge.maps_from.get(other)
    if mapping is not None and model.cfg.init_map == mapping:
        return as_bridge(renamed, bridge), True
    hint = f" (or model.init_map={mapping} to take what both have)" if mapping else ""
    raise UserError(
        f"weights {path}: hold the {PART_NAMES[other]}, and model.bridge is {bridge}; set model.bridge={other}{hint}"
    )


def load_vision(model: BitaModel, path: Path, choice: str | None = None) -> LoadReport:
    """Load the vision encoder alone; as many blocks as the model keeps are taken, from the first.

    Args:
        model: takes the weights in place.
        path: a file, an index of shards, or a folder, in any layout of `bita.weights.layouts.VISION_LAYOUTS`.
        choice: which weights, where it holds several (`bita.weights.wrappers`).

    Raises:
        UserError: a tensor is missing or has another shape: another encoder's file, or one with fewer blocks.
    """
    known, file, own = model.visual_encoder.layouts, WeightFile(path), model.state_dict()
    expected = {name for name in own if name.startswith(VISION)}
    renamed = choose(
        f"model.vit_weights {path}",
        file,
        _vision_places(file, [name for name in own if name in expected], known),
        choice,
        rename_vision if known else rename_own_vision,
        lambda part: _covers(part, own, expected),
    )
    _check_depths(model, renamed, f"model.vit_weights {path}")
    report = _check(model, renamed, str(path))
    missing = expected - report.names
    if missing:
        lacking = min(missing).removeprefix(TRUNK if known else VISION)
        raise UserError(
            f"model.vit_weights {path} [{renamed.layout}]: {len(missing)} of {len(expected)} tensors of "
            f"{model.cfg.vit_model} are not in it, e.g. {lacking}; is it another encoder's?"
        )
    _copy_in(model, renamed)
    report.total = Counter({"visual_encoder": report.total["visual_encoder"]})
    model.sources["visual_encoder"] = str(path)
    if model.cfg.freeze_vit:
        model.external["visual_encoder"] = str(path)
    return report


def _vision_places(file: WeightFile, own: list[str], known: bool) -> list[str]:
    """Return where a file may hold a vision encoder whose own names these are, in a known layout or in its own."""
    if not known:
        names = [name.removeprefix(VISION) for name in own]
        return places(file, [VISION + names[0], names[0]], [VISION])
    patches = next((name for name in own if name.endswith("patch_embed.proj.weight")), own[0])
    marks = [layout.prefix + layout.mark for layout in VISION_LAYOUTS]
    inner = [layout.prefix for layout in VISION_LAYOUTS if layout.prefix]
    return places(file, [*marks, patches.removeprefix(TRUNK)], inner)


def _covers(renamed: Renamed, own: dict[str, Tensor], expected: set[str]) -> bool:
    """Return whether all that is expected is there, in the model's shapes; positions may be of another image size."""
    have = {name if name in own or not (fused := third_of(name)) else fused[0] for name in renamed.tensors}
    return expected <= have and all(
        renamed.tensors[name].shape == own[name].shape
        for name in expected & renamed.tensors.keys()
        if not name.endswith(".pos_embed")
    )


def load_bert(model: BitaModel, source: str, choice: str | None = None) -> LoadReport:
    """Start the bridge from BERT where names match, then copy the text feed-forward to the queries' one.

    The word embedding has a row more than BERT's, for [DEC]; that row stays fresh.

    Raises:
        UserError: the file or name of the hub is missing, holds no BERT, or one of other sizes.
    """
    bridge = model.cfg.bridge
    source = unpacked("model.text_model", source)
    where = f"model.text_model {source}"
    file: Mapping[str, Tensor] = WeightFile(Path(source)) if Path(source).exists() else _bert_of_hub(source)
    found = places(file, [BERT_MARK, BERT_MARK.removeprefix("bert.")])
    renamed = as_bridge(choose(where, file, found, choice, _rename_bert, lambda _: True), bridge)
    _check_depths(model, renamed, where)
    own = model.state_dict()
    padded = {
        name: _with_dec(renamed.tensors[name], own[name], where)
        for name in (f"{bridge}.word_embedding.weight", "mlm_head.bias")
        if name in own and name in renamed.tensors
    }
    renamed = replace(renamed, tensors=dict(renamed.tensors) | padded)
    report = _check(model, renamed, source)
    if not report.loaded[bridge]:
        raise UserError(
            f"{where}: holds no BERT; name a folder or a file with BERT's weights, or null to start fresh"
        )
    _copy_in(model, renamed)
    model.sources["text_model"] = source
    if hasattr(model.bridge, "word_embedding"):
        model.bridge.copy_text_ffn_to_queries()
        fresh = model.bridge.fresh_beside_bert
        report.notes[bridge] = f"queries' feed-forward copied from the text's; {fresh} fresh"
    for part in set(report.total) - {bridge, "mlm_head"}:
        del report.total[part]
    return report


def _bert_of_hub(name: str) -> dict[str, Tensor]:
    from transformers import BertForMaskedLM

    try:
        return dict(BertForMaskedLM.from_pretrained(name).state_dict())
    except Exception as error:
        raise not_there("model.text_model", name, error) from error


def _rename_bert(tensors: Mapping[str, Tensor]) -> Renamed:
    """BERT's names, as its first versions and those without a head have them too, → ours."""
    bare = BERT_MARK.removeprefix("bert.") in tensors
    names = {
        re.sub(r"\.(gamma|beta)$", lambda end: ".weight" if end[1] == "gamma" else ".bias", name): name
        for name in tensors
    }
    plain = {
        f"bert.{new}" if bare and not new.startswith("cls.") else new: tensors[old]
        for new, old in names.items()
    }
    return rename(plain)


def _with_dec(theirs: Tensor, ours: Tensor, where: str) -> Tensor:
    """Return a tensor with a row for each word, with our fresh row for [DEC] where it has none."""
    if len(theirs) == len(ours) or theirs.shape[1:] != ours.shape[1:]:
        return theirs  # complete, or of another width: refused with both shapes
    if len(theirs) != len(ours) - 1:
        raise UserError(
            f"{where}: a vocabulary of {len(theirs)} words, and the tokenizer has {len(ours)} with [DEC]; "
            "model.text_tokenizer must be that model's"
        )
    return torch.cat([theirs, ours[-1:]])


def _check(model: BitaModel, renamed: Renamed, source: str) -> LoadReport:
    """Return what a load would do; every tensor that has a place must fit it and be finite. Nothing is changed."""
    own, tied = model.state_dict(), model.tied_names()
    report = LoadReport(source, renamed.layout, renamed.place)
    report.total.update(part_of(name) for name in own if name not in tied)
    report.unused = [name for name in renamed.no_place if not _is_copy(name)]
    thirds: Counter[str] = Counter()
    for name, tensor in renamed.tensors.items():
        target = _target(own, name)
        if target is None:
            report.unused.append(name)
            continue
        tensor = _fitted(model, name, tensor, target)
        if target.shape != tensor.shape:
            raise UserError(misfit(model, source, name, tensor, target))
        if not _is_finite(tensor):
            raise UserError(
                f"weights {source}: {name} holds infinite values or NaN ({str(tensor.dtype).removeprefix('torch.')}); "
                "the file is damaged or its training diverged, use another"
            )
        fused = None if name in own else third_of(name)
        if fused is not None:
            name = fused[0]
            thirds[name] += 1
        if fused is None or thirds[name] == len(THIRDS):
            report.names.add(name)
            report.loaded[part_of(name)] += name not in tied
    return report


@torch.no_grad()
def _copy_in(model: BitaModel, renamed: Renamed) -> None:
    """Copy every tensor that has a place, after `_check`."""
    own = model.state_dict()
    for name, tensor in renamed.tensors.items():
        target = _target(own, name)
        if target is not None:
            target.copy_(_fitted(model, name, tensor, target))


def _is_finite(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() and tensor.numel()) or bool(
        torch.stack(tensor.aminmax()).isfinite().all()
    )


def _target(own: dict[str, Tensor], name: str) -> Tensor | None:
    """Return where a tensor goes: one of the model's, or a third of a fused one; None when it has no place."""
    if name in own:
        return own[name]
    third = third_of(name)
    if third is None or third[0] not in own:
        return None
    return own[third[0]].chunk(len(THIRDS))[third[1]]


def _fitted(model: BitaModel, name: str, tensor: Tensor, target: Tensor) -> Tensor:
    """Positions of the vision encoder, resized for another image size; else the tensor as it is."""
    if (
        not name.endswith(".pos_embed")
        or tensor.shape == target.shape
        or tensor.shape[-1] != target.shape[-1]
    ):
        return tensor
    return model.visual_encoder.fit_positions(tensor)


def _check_depths(model: BitaModel, renamed: Renamed, where: str) -> None:
    """Refuse a file with fewer layers than the model has, and one whose IFT is deeper: cut, it is another model."""
    for pattern, key in DEPTHS.items():
        there, here = (
            1 + max((int(match[1]) for name in names if (match := pattern.match(name))), default=-1)
            for names in (renamed.tensors, model.state_dict())
        )
        if not there or there == here or (there > here and key == "vit_depth"):
            continue
        part = "vision" if key == "vit_depth" else PART_NAMES[model.cfg.bridge]
        if there < here:
            raise UserError(
                f"{where}: {part} is not complete in it: it holds {there} blocks, and model.{key} asks for {here}"
            )
        raise UserError(f"{where}: its {part} has {there} layers; set model.{key}={there}, it is {here}")


def _is_copy(name: str) -> bool:
    """Position ids and tied copies are expected in published files, and not worth a word."""
    return name.endswith("position_ids") or "predictions.decoder" in name
