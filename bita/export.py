"""A trained model as one folder that needs nothing else, or as the original's file; and back to its configuration.

An exported folder holds

    model.safetensors     all weights but the language model's, in shards with an index above 5 GB
    language_model/       the language model as transformers saves it (captioning models)
    tokenizer/            its tokenizer; stage 1: text_tokenizer/
    config.yaml           the configuration, the image processors' size and normalisation written out
    meta.json             the same for programs, with the checksums of the weights
    stage1/               the stage-1 model that a captioning model grew from, where it is still there
    calibration.json      what its confidence is worked out with, where it was calibrated

and is read wherever a checkpoint is: `bita.load(OUT)`, `caption.py --checkpoint OUT`, `model.init_from: OUT`.
"""

from __future__ import annotations

import hashlib
import json
import os
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
from bita.config.run import RunConfig
from bita.config.schema import Config, EnvConfig
from bita.errors import UserError
from bita.files import TEMPORARY, open_to_others, replacing, sha256, user_path, write_json, write_text
from bita.models.base import BitaModel, part_of
from bita.models.vision import image_input
from bita.registry import models
from bita.weights.files import read_config
from bita.weights.layouts import published

MAX_SHARD = "5GB"
STAGE_1_FOLDER = "stage1"
"""Of an exported captioning model: the stage-1 model that it grew from, exported too."""
CALIBRATION_FILE = "calibration.json"
"""In a run or an export: what confidence is worked out with (`bita.inference.confidence`)."""


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

    Those of the checkpoint and of the files beside it that it names.
    """
    checkpoint = Path(str(cfg.model.init_from))
    if (folder_of(checkpoint) / META_FILE).is_file():
        meta = meta_of(cfg)
        said = {name: entry["sha256"] for name, entry in meta.files.items() if name.startswith("model")}
        said |= {key: entry["files"] for key, entry in (meta.outside or {}).items()}
    else:
        said = {"model": sha256(checkpoint)}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def stage_1_of(run: str | Path) -> Path | None:
    """The stage-1 run that a captioning run started from, by what each run's checkpoint says; None: not to be found.

    An exported folder may have it inside. Runs that were moved together are found beside each other.
    """
    folder = folder_of(resolve_checkpoint(user_path(run))).resolve()
    if (folder / STAGE_1_FOLDER / META_FILE).is_file():
        return folder / STAGE_1_FOLDER
    seen = {folder}
    while (folder / META_FILE).is_file():
        source = _before(folder, read_meta(folder))
        if source is None or source in seen:
            return None
        if (source / META_FILE).is_file() and not models.config(config_of(source).model.arch).writes_captions:
            return source
        seen.add(source)
        folder = source
    return None


def _before(folder: Path, meta: Meta) -> Path | None:
    """Return the checkpoint that a run's first weights came from, where it is still there."""
    source = (meta.config.get("model") or {}).get("init_from")
    if not source:
        return None
    places = [user_path(source)]
    written_to = (meta.config.get("run") or {}).get("output_dir")
    if written_to:  # checkpoints lie at OUTPUT_DIR/RUN/checkpoints/NAME
        places.insert(0, folder.parents[2] / os.path.relpath(user_path(source), user_path(written_to)))
    for place in places:
        try:
            return folder_of(resolve_checkpoint(place)).resolve()
        except UserError:
            continue
    return None


def calibration_of(cfg: Config) -> Path | None:
    """Return the file that confidence is worked out with, of a configuration of `config_of`; None: there is none."""
    folder = folder_of(Path(str(cfg.model.init_from))).resolve()
    places = (folder / CALIBRATION_FILE, folder.parent.parent / CALIBRATION_FILE)
    return next((place for place in places if place.is_file()), None)


def export_folder(
    run: str | Path, out: Path, *, max_shard: str = MAX_SHARD, half: bool = False, stage1: bool = True
) -> None:
    """Write a run's best checkpoint (or the one named) with everything that it needs as one folder.

    Args:
        run: as for `bita.load`.
        out: a folder that is not there yet; it appears when it is complete.
        max_shard: largest file of weights, such as `5GB`.
        half: all weights in 16 bit and in one file, of a model whose language model is one of its own; nothing of this
            machine's folders is in it, so that it can be given away.
        stage1: also the stage-1 model that a captioning model grew from, where it is still there; not with `half`.

    Raises:
        UserError: `out` exists, or the model cannot be built.
        OSError: it cannot be written.
    """
    _check_free(out)
    cfg = config_of(run)
    captions = models.config(cfg.model.arch).writes_captions
    aligner = stage_1_of(run) if stage1 and captions and not half else None
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
            own.env, own.run.output_dir, own.run.name = EnvConfig(), RunConfig().output_dir, None
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
        if aligner is not None:
            export_folder(aligner, temporary / STAGE_1_FOLDER, max_shard=max_shard)
        _keep_calibration(cfg, temporary)
        open_to_others(temporary)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _keep_calibration(cfg: Config, folder: Path) -> None:
    """Bind a run's calibration to what was exported of it: the same weights, in other files."""
    source = calibration_of(cfg)
    content = {} if source is None else json.loads(source.read_text(encoding="utf-8"))
    if content.get("model") != hash_of(cfg):
        return
    content["model"] = hash_of(config_of(folder))
    stage1 = folder / STAGE_1_FOLDER
    content["stage1"] = hash_of(config_of(stage1)) if content["stage1"] and stage1.is_dir() else None
    write_json(folder / CALIBRATION_FILE, content)


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
