"""What a checkpoint holds of a run in progress, and how a run goes on from it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bita import distributed
from bita.checkpoint import (
    MODEL_FILE,
    TRAINER_FILE,
    Meta,
    newest_complete,
    resolve_checkpoint,
    verify,
    write_checkpoint,
)
from bita.config.checks import AUTO
from bita.config.schema import Config
from bita.errors import UserError, first_line
from bita.models.base import BitaModel
from bita.runners.parallel import collect, cut_like
from bita.runners.resume import since_checkpoint
from bita.runners.run_dir import RunDir
from bita.runners.stepper import Stepper
from bita.weights.outside import differences, outside


def save_state(parent: Path, meta: Meta, model: BitaModel, stepper: Stepper) -> Path:
    """Write a checkpoint of a run, on the main process, for which the others wait; its folder. Every process calls it.

    Raises:
        OSError: it could not be written; older checkpoints are untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    weights, trainer = collect((model.checkpoint_state(), stepper.state()))
    trainer |= {"processes": distributed.world_size(), "threads": torch.get_num_threads()}

    def write_model(path: Path) -> None:
        try:
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    def write_trainer(path: Path) -> None:
        try:
            torch.save(trainer, path)
        except RuntimeError as error:
            raise OSError(first_line(error)) from error

    writers = {MODEL_FILE: write_model, TRAINER_FILE: write_trainer}
    return distributed.on_main(lambda: write_checkpoint(parent, meta, writers))


def load_state(
    folder: Path, cfg: Config, model: BitaModel, stepper: Stepper, warn: Callable[[str], None]
) -> Meta:
    """Take a run's state from a checkpoint folder and return its position.

    Raises:
        UserError: the checkpoint is damaged, of another architecture, or cannot be gone on with.
    """
    if not (folder / TRAINER_FILE).is_file():
        raise UserError(
            f"run.resume {folder}: holds weights but no {TRAINER_FILE}; to start from its weights, "
            "set model.init_from instead"
        )
    meta = verify(folder)
    refuse_other_files(folder, meta, model, warn)
    trainer = read_trainer(folder / TRAINER_FILE)
    load_weights(folder, model)
    try:
        stepper.load_state(trainer)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"run.resume {folder}: its optimizer is of another model; use model.init_from"
        ) from error
    different = since_checkpoint(meta.config, cfg)
    if trainer["processes"] != distributed.world_size():
        different.append(f"number of processes ({trainer['processes']} then, {distributed.world_size()} now)")
    threads = trainer.get("threads", torch.get_num_threads())
    if model.device.type == "cpu" and threads != torch.get_num_threads():
        different.append(f"number of threads ({threads} then, {torch.get_num_threads()} now)")
    for difference in different:
        warn(f"resumed with another {difference}: the result will not equal an uninterrupted run's")
    return meta


def refuse_other_files(folder: Path, meta: Meta, model: BitaModel, warn: Callable[[str], None]) -> None:
    """Raise UserError, on every process, where frozen parts or tokenizers are not those of the run in `folder`."""

    def check() -> None:
        now = outside(model)
        if meta.outside is None and now:
            warn(f"{folder}: does not say what {', '.join(now)} held; taken for the same")
        different = differences(meta.outside or {}, now)
        if different:
            raise UserError(
                f"run.resume {folder}: {'; '.join(different)}; name the file of then, or start from its weights alone "
                f"with model.init_from={folder}"
            )

    distributed.on_main(check)


def load_weights(folder: Path, model: BitaModel) -> None:
    """Take the weights of a checkpoint folder, exactly.

    Raises:
        UserError: they are of another architecture.
    """
    from safetensors.torch import load_file

    try:
        own = model.state_dict()
        state = load_file(folder / MODEL_FILE)
        model.load_checkpoint_state(
            {name: cut_like(tensor, own[name]) if name in own else tensor for name, tensor in state.items()}
        )
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def read_trainer(path: Path) -> dict[str, Any]:
    """Optimizer and scaler of a checkpoint; only plain data is read, never code.

    Raises:
        UserError: the file holds something else.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, since it holds more than data and reading it could run code"
        ) from error
    except Exception as error:
        raise UserError(f"{path}: not readable ({first_line(error)}); use another checkpoint") from error
    return content


def find_resume(cfg: Config, run_dir: RunDir, warn: Callable[[str], None]) -> Path | None:
    """Return the checkpoint that this run goes on from, decided on the main process.

    The newest whole one of the run's own folder comes first; then the one that `run.resume` names.
    """

    def find() -> Path | None:
        own = newest_complete(run_dir.checkpoints, warn)
        if own is not None or cfg.run.resume in (None, AUTO):
            return own
        return resolve_checkpoint(cfg.run.resume)

    return distributed.on_main(find)
