"""Weights as trainers write them: whatever they put round a state dict, and whatever lies beside it in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bita.build import build_model
from bita.checkpoint import split_choice
from bita.errors import UserError
from bita.models.base import BitaModel
from bita.weights.files import WeightFile
from bita.weights.load import load_vision
from bita.weights.wrappers import places
from tests.weights.clip_files import State
from tests.weights.conftest import put
from tests.weights.test_weights import equal, small, stage_1


def other(state: State) -> State:
    """The same names, other numbers."""
    return {name: tensor + 1 for name, tensor in state.items()}


def ddp_of_compiled_lightning(state: State) -> dict[str, Any]:
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5",
        "state_dict": put("model.module._orig_mod.", state) | {"criterion.weight": torch.ones(2)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
        "hyper_parameters": {"lr": 1e-3},
    }


WRAPPED: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (lambda s: s, ""),
    "torch.compile": (lambda s: put("_orig_mod.", s), ""),
    "DDP": (lambda s: put("module.", s), "module."),
    "compiled inside": (
        lambda s: {n.replace("blocks.0.", "blocks.0._orig_mod."): t for n, t in s.items()},
        "",
    ),
    "FSDP": (lambda s: {n.replace("blocks.", "blocks._fsdp_wrapped_module."): t for n, t in s.items()}, ""),
    "DDP of a compiled model": (lambda s: put("module._orig_mod.", s), "module."),
    "Lightning": (ddp_of_compiled_lightning, "state_dict.model.module."),
    "DeepSpeed": (lambda s: {"module": s, "ds_version": "0.1", "optimizer": None}, "module."),
    "open_clip": (
        lambda s: {"epoch": 1, "name": "x", "state_dict": put("module.visual.trunk.", s)},
        "state_dict.module.",
    ),
    "timm": (lambda s: {"arch": "vit", "state_dict": s, "metric": 1.5}, "state_dict."),
    "MAE": (lambda s: {"model": s | {"mask_token": torch.ones(1)}, "scaler": {"scale": 1.0}}, "model."),
    "DINO's teacher alone": (
        lambda s: {"teacher": put("module.backbone.", s) | {"module.head.x": torch.ones(2)}},
        "teacher.module.backbone.",
    ),
    "averaged model": (lambda s: put("module.", s) | {"n_averaged": torch.tensor(7)}, "module."),
    "a name of one's own": (lambda s: {"net": put("captioner.eyes.", s)}, "net.captioner.eyes."),
    "numpy": (lambda s: {"model": {n: t.numpy() for n, t in s.items()}}, "model."),
}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"


@pytest.mark.parametrize("name", WRAPPED)
def test_what_trainers_put_round_the_weights_is_seen_through(
    name: str, source: BitaModel, encoder: State, tmp_path: Path
) -> None:
    wrap, place = WRAPPED[name]
    torch.save(wrap(encoder), tmp_path / "file.pth")
    model = stage_1()
    report = load_vision(model, tmp_path / "file.pth")
    assert equal(model, source, "visual_encoder.")
    assert report.place == place
    assert (f"] under {place}: vision 29/29" if place else "]: vision 29/29") in str(report)


TWICE: dict[str, tuple[Callable[[State], Any], str]] = {
    "timm": (lambda s: {"state_dict": s, "state_dict_ema": other(s)}, "state_dict"),
    "timm's average": (lambda s: {"state_dict": other(s), "state_dict_ema": s}, "state_dict_ema"),
    "DINO": (
        lambda s: {"student": put("module.backbone.", other(s)), "teacher": put("backbone.", s)},
        "teacher",
    ),
    "MoCo": (
        lambda s: {"state_dict": put("module.base_encoder.", s) | put("module.momentum_encoder.", other(s))},
        "base_encoder",
    ),
    "Lightning with EMA": (
        lambda s: {"state_dict": put("model.", other(s)) | put("model_ema.module.", s)},
        "model_ema",
    ),
    "ema_pytorch": (
        lambda s: put("online_model.", other(s)) | put("ema_model.", s) | {"initted": torch.tensor(True)},
        "ema_model",
    ),
    "at the top and below": (lambda s: s | {"ema": other(s)}, "."),
    "averages without names": (
        lambda s: {"model": s, "ema": {"decay": 0.9, "shadow_params": list(other(s).values())}},
        "model",
    ),
}


@pytest.mark.parametrize("name", TWICE)
def test_where_two_fit_one_is_chosen_by_name(
    name: str, source: BitaModel, encoder: State, tmp_path: Path
) -> None:
    wrap, choice = TWICE[name]
    file = tmp_path / "file.pth"
    torch.save(wrap(encoder), file)
    model = stage_1()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(UserError, match="choose one") as error:
        load_vision(model, file)
    assert f"{file}#" in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    load_vision(model, file, choice)
    assert equal(model, source, "visual_encoder.")
    with pytest.raises(UserError, match=r"#elsewhere: no weights under that name; it has '"):
        load_vision(model, file, "elsewhere")


def test_of_two_only_the_one_that_fits_counts(source: BitaModel, encoder: State, tmp_path: Path) -> None:
    wider = {name: torch.cat([tensor, tensor], dim=-1) for name, tensor in encoder.items()}
    torch.save({"student": encoder, "teacher": wider}, tmp_path / "distilled.pth")
    model = stage_1()
    assert load_vision(model, tmp_path / "distilled.pth").place == "student."
    assert equal(model, source, "visual_encoder.")


def test_averages_without_names_are_refused_by_name(encoder: State, tmp_path: Path) -> None:
    averages = {"decay": 0.99, "num_updates": 3, "shadow_params": list(encoder.values())}
    torch.save(averages, tmp_path / "a.pth")
    torch.save({"model": encoder, "ema": averages}, tmp_path / "b.pth")
    for file, choice in ((tmp_path / "a.pth", None), (tmp_path / "b.pth", "ema")):
        with pytest.raises(UserError, match="shadow_params is a list of averages without names") as error:
            load_vision(stage_1(), file, choice)
        assert "ema.copy_to" in str(error.value)


def test_a_choice_stands_behind_the_path_in_the_configuration(
    source: BitaModel, encoder: State, tmp_path: Path
) -> None:
    file = tmp_path / "odd#name.pth"
    torch.save({"model": encoder, "model_ema": other(encoder)}, file)
    model = build_model(small(vit_weights=f"{file}#model"))
    assert equal(model, source, "visual_encoder.")
    whole = source.state_dict()
    torch.save({"model": put("module.", other(whole)), "ema": whole}, file)
    assert equal(build_model(small(init_from=f"{file}#ema")), source)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.pth", ("a.pth", None)),
        ("a.pth#ema", ("a.pth", "ema")),
        ("a.pth#state_dict.module", ("a.pth", "state_dict.module")),
        ("runs/exp#3/best", ("runs/exp#3/best", None)),
        ("https://x/a.pth#sha256=00", ("https://x/a.pth#sha256=00", None)),
        ("https://x/a.pth#sha256=00#ema", ("https://x/a.pth#sha256=00", "ema")),
        ("a.pth#", ("a.pth#", None)),
    ],
)
def test_where_a_choice_begins(text: str, parts: tuple[str, str | None]) -> None:
    assert split_choice(text) == parts


def test_a_path_that_is_there_is_no_choice(tmp_path: Path) -> None:
    (tmp_path / "a.pth#b").write_text("")
    assert split_choice(f"{tmp_path}/a.pth#b") == (f"{tmp_path}/a.pth#b", None)


def test_what_processes_share_says_how_to_put_it_together(encoder: State, tmp_path: Path) -> None:
    torch.save(
        {"module": {name: torch.empty(0) for name in encoder}}, tmp_path / "mp_rank_00_model_states.pt"
    )
    (tmp_path / "run/global_step5").mkdir(parents=True)
    (tmp_path / "run/latest").write_text("global_step5")
    for path in (tmp_path / "mp_rank_00_model_states.pt", tmp_path / "run"):
        with pytest.raises(UserError, match=r"python zero_to_fp32\.py FOLDER FILE"):
            load_vision(stage_1(), path)


def test_shards_without_a_readable_index_are_named(encoder: State, tmp_path: Path) -> None:
    torch.save(encoder, tmp_path / "pytorch_model-00001-of-00002.bin")
    for path in (tmp_path, tmp_path / "pytorch_model-00001-of-00002.bin"):
        with pytest.raises(
            UserError, match=r"one of 2 shards, and pytorch_model\.bin\.index\.json is not beside"
        ):
            load_vision(stage_1(), path)
    (tmp_path / "pytorch_model.bin.index.json").write_bytes(LFS)
    with pytest.raises(UserError, match=r"index\.json: is a Git LFS pointer, .* git lfs pull"):
        load_vision(stage_1(), tmp_path)


def test_a_number_without_axes_stays_one(tmp_path: Path) -> None:
    torch.save({"steps": np.array(7), "rows": np.zeros((2, 3)).T}, tmp_path / "file.pth")
    assert {name: tuple(t.shape) for name, t in WeightFile(tmp_path / "file.pth").items()} == {
        "steps": (),
        "rows": (3, 2),
    }


def test_a_whole_model_in_wrappers_is_loaded(source: BitaModel, tmp_path: Path) -> None:
    torch.save({"state_dict": put("model._orig_mod.", source.state_dict())}, tmp_path / "l.ckpt")
    model = build_model(small(init_from=str(tmp_path / "l.ckpt")))
    assert equal(model, source)


def test_places_of_a_layout_are_not_counted_twice() -> None:
    names = ["visual_encoder.patch_embed.proj.weight", "visual_encoder.blocks.0.attn.q_bias"]
    marks = ["visual_encoder.blocks.0.attn.q_bias", "patch_embed.proj.weight"]
    assert places(names, marks, ["visual_encoder."]) == [""]
