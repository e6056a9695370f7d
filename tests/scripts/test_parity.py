"""The code reproduces the published model, and the program that says so notices every kind of difference."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import parity

FIXTURE = Path(__file__).parents[1] / "fixtures/parity"


def test_every_recorded_item_agrees() -> None:
    record = parity.compare(FIXTURE)
    differing = {name: finding.detail for name, finding in record.findings.items() if not finding.agrees}
    assert differing == {}
    assert record.items.keys() <= record.findings.keys()
    assert len(record.items) > 700
    assert parity.table(record).endswith(f"{len(record.findings)} of {len(record.findings)} items")


def change_json(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "expected.json").read_text())
        change(content)
        (folder / "expected.json").write_text(json.dumps(content))

    return apply


def change_tensor(file: str, name: str, by: float) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = torch.load(folder / file, weights_only=True)
        tensor = content.get("model", content)[name]
        (tensor.flatten()[:1] if tensor.ndim else tensor).add_(by)
        torch.save(content, folder / file)

    return apply


def add_tensor(folder: Path) -> None:
    content = torch.load(folder / "stage1_expected.pt", weights_only=True)
    torch.save(content | {"something_else": torch.zeros(1)}, folder / "stage1_expected.pt")


def untie(folder: Path) -> None:
    content = torch.load(folder / "stage1_checkpoint.pth", weights_only=True)
    name = "Fformer.cls.predictions.decoder.bias"
    content["model"][name] = content["model"][name] + 0.1
    torch.save(content, folder / "stage1_checkpoint.pth")


CHANGES = {
    "loss": change_json(lambda c: c["stage1"].update(loss_itc=c["stage1"]["loss_itc"] + 1e-4)),
    "steps": change_json(lambda c: c["stage2"]["loss_over_4_adamw_steps"].__setitem__(3, 6.5)),
    "ids": change_json(lambda c: c["stage2"]["generate_ids"]["beams5_max22_min5"][1].__setitem__(4, 460)),
    "generated text": change_json(
        lambda c: c["caption"]["generate"]["beams1_max22_min5"].__setitem__(0, "pair")
    ),
    "text": change_json(lambda c: c["text_processor"]["cases"][3].__setitem__(1, "another text")),
    "prompted": change_json(lambda c: c["text_processor"]["prompted"][0].__setitem__(2, "a photo of a pair")),
    "rate": change_json(lambda c: c["lr_schedules"][1]["lr"].__setitem__(7, 1e-5)),
    "decay rule": change_json(lambda c: c["optimizer"].update(no_decay="ndim < 2 or 'query' in the name")),
    "beta": change_json(lambda c: c["optimizer"].update(betas=[0.8, 0.999])),
    "trainable": change_json(
        lambda c: c["stage1"]["trainable"].__setitem__(0, "visual_encoder.conv1.weight")
    ),
    "size": change_json(lambda c: c["sizes"]["opt"].update(ffn_dim=81)),
    "unknown key": change_json(lambda c: c["stage2"].update(surprise=1)),
    "unknown tensor": add_tensor,
    "forward value": change_tensor("stage1_expected.pt", "image_feats", 2e-5),
    "gradient": change_tensor("stage2_expected.pt", "grad/query_tokens", 0.01),
    "weight": change_tensor("stage1_checkpoint.pth", "Fformer.bert.encoder.layer.1.output.dense.bias", 0.1),
    "tied copy": untie,
}


EVERYDAY = ("loss", "ids", "unknown key", "forward value")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in EVERYDAY else pytest.mark.long) for kind in CHANGES]
)
def test_one_changed_value_is_noticed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "parity"
    shutil.copytree(FIXTURE, folder)
    CHANGES[kind](folder)
    monkeypatch.setattr(sys, "argv", ["parity.py", str(folder)])
    assert parity.main() == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_sizes_that_build_no_model_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "parity"
    shutil.copytree(FIXTURE, folder)
    change_json(lambda c: c["sizes"]["vit"].update(heads=5))(folder)
    monkeypatch.setattr(sys, "argv", ["parity.py", str(folder)])
    assert parity.main() == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no model can be built" in error


def test_a_folder_without_a_record_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["parity.py", str(tmp_path)])
    assert parity.main() == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "expected.json" in error
