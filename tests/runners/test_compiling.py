"""`run.compile`: the same training, but for rounding, from compiled blocks."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_run import toy_config, toy_model, toy_runner

from bita import compiling
from bita.checkpoint import resolve_checkpoint


def test_the_blocks_are_those_of_encoder_bridge_and_decoder(tmp_path: Path) -> None:
    model = toy_model(toy_config(tmp_path))
    kinds = [type(block).__name__ for block in compiling.blocks_of(model)]
    assert kinds.count("IFTLayer") == 2
    assert kinds.count("OPTDecoderLayer") == 1
    assert sum("Block" in kind for kind in kinds) >= 1


def test_a_machine_without_a_compiler_goes_without(tmp_path: Path, monkeypatch, caplog) -> None:
    def fails(*_, **__):
        raise RuntimeError("no g++ here\nand more")

    monkeypatch.setattr(torch, "compile", fails)
    model = toy_model(toy_config(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert compiling.compile_blocks(model, torch.device("cpu")) == 0
    assert [r.getMessage() for r in caplog.records] == [
        "run.compile: goes without, since nothing can be compiled here (no g++ here)"
    ]


@pytest.mark.long
def test_compiled_training_learns_the_same_and_writes_the_same_names(tmp_path: Path) -> None:
    weights = []
    for name in (False, True):
        cfg = toy_config(tmp_path / str(name), name="run", compile=name, max_epoch=1)
        runner = toy_runner(cfg, tmp_path / "images")
        runner.train()
        weights.append(load_file(resolve_checkpoint(tmp_path / str(name)) / "model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    different = 0
    for name, tensor in weights[0].items():
        torch.testing.assert_close(
            tensor, weights[1][name], rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
        different += not torch.equal(tensor, weights[1][name])
    assert different, "nothing was compiled"
