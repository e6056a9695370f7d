"""A trained model as one folder that needs nothing else, or as the original's file; and back to its configuration.

An exported folder holds

    model.safetensors     all weights but the language model's, in shards with an index above 5 GB
    language_model/       the language model as transformers saves it (captioning models)
    tokenizer/            its tokenizer; stage 1: text_tokenizer/
    config.yaml           the configuration, the image processors' size and normalisation written out
    meta.json             the same for programs, with the checksums of the weights

and is read wherever a checkpoint is: `bita.load(OUT)`, `caption.py --checkpoint OUT`, `model.init_from: OUT`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bita.build import build_model
from bita.checkpoint import (
    FORMAT,
    META_FILE,
    MODEL_FILE,
    Meta,
    folder_of,
    read_meta,
    resolve_checkpoint,
    weights_problem,
)
from bita.config.load import config_from_dict, config_to_dict, config_to_yaml, recorded_config
from bita.config.parts import CaptionerConfig, ImageConfig
from bita.config.plugins import ModuleError
from bita.config.schema import Config
from bita.errors import UserError
from bita.files import TEMPORARY, open_to_others, replacing, sha256, user_path, write_json, write_text
from bita.models.base import BitaModel, part_of
from bita.models.vision import image_input
from bita.weights.files import read_config
from bita.weights.layouts import published

MAX_SHARD = "5GB"
STAGE_1_FOLDER = "stage1"
"""Of an exported captioning model: the stage-1 model that it grew from, exported too."""


def config_of(run: str | Path) -> Config:
    """The configuration of a run, of a checkpoint in it, or of an exported folder, ready to build the model with it.

    `model.init_from` names the weights; tokenizers and language model come from the folder where it keeps them.

    Raises:
        UserError: there is no checkpoint, or nothing that says how it was made.
    """
    checkpoint = resolve_checkpoint(user_path(run))
    folder = folder_of(checkpoint)
    if (folder / META_FILE).is_file():
        meta = read_meta(folder)
        cfg = recorded_config(meta.config, checkpoint, meta.format)
    else:
        cfg = _config_in(checkpoint)
    cfg.model.init_from = str(checkpoint)
    for key, name in cfg.model.folders.items():
        for kept in (folder.resolve() / name, folder.resolve().parent.parent / name):
            if kept.is_dir():
                setattr(cfg.model, key, str(kept))
                break
    return cfg


def _config_in(checkpoint: Path) -> Config:
    """Return the configuration in a file that `export_published` wrote."""
    try:
        content = dict(read_config(checkpoint))
        return recorded_config(content, checkpoint, content.pop("format", 1))
    except ModuleError:
        raise
    except (UserError, TypeError, AttributeError) as error:
        problem = weights_problem(checkpoint)
        if problem is not None:
            raise UserError(f"checkpoint {checkpoint}: {problem}") from error
        raise UserError(
            f"checkpoint {checkpoint}: neither a {META_FILE} beside it nor a configuration of ours in it; "
            "use evaluate.py with --cfg-path"
        ) from error


def meta_of(cfg: Config) -> Meta:
    """Return what the checkpoint says that a configuration of `config_of` starts from."""
    return read_meta(folder_of(Path(str(cfg.model.init_from))))


def hash_of(cfg: Config) -> str:
    """Sixteen hexadecimal digits of the weights that a configuration of `config_of` starts from.

    Those of the checkpoint and of the files beside it that it names; a quantized model is another one.
    """
    checkpoint = Path(str(cfg.model.init_from))
    if (folder_of(checkpoint) / META_FILE).is_file():
        meta = meta_of(cfg)
        said = {name: entry["sha256"] for name, entry in meta.files.items() if name.startswith("model")}
        said |= {key: entry["files"] for key, entry in (meta.outside or {}).items()}
    else:
        said = {"model": sha256(checkpoint)}
    quantized = getattr(cfg.model, "lm_quantize", "none")
    if quantized != "none":
        said["quantize"] = quantized
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def export_folder(run: str | Path, out: Path, *, max_shard: str = MAX_SHARD, half: bool = False) -> None:
    """Write a run's best checkpoint (or the one named) with everything that it needs as one folder.

    Args:
        run: as for `bita.load`.
        out: a folder that is not there yet; it appears when it is complete.
        max_shard: largest file of weights, such as `5GB`.
        half: all weights in 16 bit and in one file, of a model whose language model is one of its own.

    Raises:
        UserError: `out` exists, or the model cannot be built.
        OSError: it cannot be written.
    """
    _check_free(out)
    cfg = config_of(run)
    meta = meta_of(cfg)
    if half and not (isinstance(cfg.model, CaptionerConfig) and cfg.model.opt_model is None):
        raise UserError(
            f"{run}: one file in 16 bit is for captioning models whose language model was trained along; leave out half"
        )
    model = _merged(cfg)
    temporary = out.with_name(f"{TEMPORARY}{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        own = _self_contained(cfg)
        if half:
            _write_half(model, temporary)
            assert isinstance(own.model, CaptionerConfig)
            own.model.opt_model = None  # it is in that file
        else:
            _write_weights(model, temporary, max_shard)
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
            for file in sorted(temporary.glob("model*"))
        }
        write_text(temporary / "config.yaml", config_to_yaml(own))
        write_json(
            temporary / META_FILE,
            asdict(replace(meta, format=FORMAT, config=config_to_dict(own), files=files, outside={})),
        )
        open_to_others(temporary)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def export_published(run: str | Path, out: Path) -> None:
    """Write a run's best checkpoint (or the one named) as a file in the layout of the authors' released ones.

    A dictionary with `model`, `optimizer`, `config`, `scaler`, `epoch`: trained weights and their tied copies under the
    published names; the frozen parts are left out as there, and there is no optimizer's or scaler's state (None).

    Raises:
        UserError: `out` exists or is no .pth file.
        OSError: it cannot be written.
    """
    _check_free(out)
    if out.suffix != ".pth":
        raise UserError(f"{out}: the published layout is one file; its name should end in .pth")
    cfg = config_of(run)
    meta = meta_of(cfg)
    model = _merged(cfg)
    state = model.state_dict()
    tied = {name: state[name] for name in model.tied_names()}
    content = {
        "model": published(
            model.checkpoint_state() | tied,
            max_positions=getattr(cfg.model.bridge_size, "max_positions", None),
        ),
        "optimizer": None,
        "config": {"format": meta.format} | meta.config | {"model": _without_lora(meta.config["model"])},
        "scaler": None,
        "epoch": meta.epoch,
    }
    with replacing(out) as temporary:
        torch.save(content, temporary)


def _merged(cfg: Config) -> BitaModel:
    """Return the model with its weights, LoRA's merged into the language model in its own precision."""
    model = build_model(cfg.model)
    model.merge_lora()
    return model


def _without_lora(model: dict[str, Any]) -> dict[str, Any]:
    """Return the recorded keys of a model whose LoRA weights are merged."""
    return model | {"lora": None} if "lora" in model else model


def _check_free(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out}: exists already; choose another name")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}")


def _write_weights(model: BitaModel, folder: Path, max_shard: str) -> None:
    """What other libraries read as they save it, all other weights beside it."""
    from huggingface_hub import save_torch_state_dict

    elsewhere = model.save_parts(folder, max_shard)
    state = {name: tensor for name, tensor in model.state_dict().items() if part_of(name) not in elsewhere}
    save_torch_state_dict(state, folder, max_shard_size=max_shard)


def _write_half(model: BitaModel, folder: Path) -> None:
    """Write every weight, in 16 bit, and the tokenizer."""
    from safetensors.torch import save_file

    model.keep_tokenizer(folder)
    tied = model.tied_names()
    state = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
        if name not in tied
    }
    save_file(state, folder / MODEL_FILE)


def _self_contained(cfg: Config) -> Config:
    """Return a copy without paths to weights, in which the image processors say all that they do."""
    own = config_from_dict(config_to_dict(cfg))
    images = image_input(cfg.model)
    own.model.for_export(images.size)
    for dataset in own.datasets.values():
        for processor in dataset.vis_processor.values():
            if isinstance(processor, ImageConfig):
                processor.image_size = processor.image_size or images.size
                processor.mean = list(images.mean) if processor.mean is None else processor.mean
                processor.std = list(images.std) if processor.std is None else processor.std
    return own
