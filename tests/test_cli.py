"""train.py and evaluate.py: what they say and how they exit before anything is built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bita.cli import main
from bita.config.load import load_config

ROOT = Path(__file__).resolve().parents[1]
STAGE_1 = ROOT / "configs/projects/bita/train/pretrain_stage1.yaml"
EVALUATION = ROOT / "configs/projects/bita/eval/caption_eval.yaml"


@pytest.mark.parametrize("program", ["train.py", "evaluate.py"])
def test_a_mistake_is_one_line_and_exit_code_2(program, tmp_path):
    command = [sys.executable, "-X", "importtime", str(ROOT / program), "--cfg-path", str(STAGE_1)]
    done = subprocess.run(
        [*command, "--options", "run.max_epohc=1"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert said == ["error: run.max_epohc (--options): unknown key; did you mean 'run.max_epoch'?"]
    assert done.returncode == 2
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "omegaconf" in imported
    assert not imported & {"torch", "transformers", "timm", "numpy"}


def test_print_config_is_a_project_file(tmp_path, capsys):
    options = [
        "--options",
        "run.max_epoch=3",
        "--options",
        "datasets=[ucm_caption]",
        "model.vit_weights=no.pth",
    ]
    assert main("", evaluate=False, arguments=["--cfg-path", str(STAGE_1), *options, "--print-config"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "warning: model.vit_weights (--options): no.pth: no such file or folder\n"
    (tmp_path / "printed.yaml").write_text(printed.out)
    cfg = load_config(tmp_path / "printed.yaml", need_files=False)
    assert (cfg.run.max_epoch, list(cfg.datasets)) == (3, ["ucm_caption"])


def test_evaluation_is_forced(capsys):
    argv = ["--cfg-path", str(EVALUATION), "--print-config", "--options", "run.evaluate=false"]
    assert main("", evaluate=True, arguments=argv) == 0
    assert yaml.safe_load(capsys.readouterr().out)["run"]["evaluate"] is True


def test_evaluation_needs_weights(capsys):
    argv = ["--cfg-path", str(EVALUATION), "--options", "model.init_from=null"]
    assert main("", evaluate=True, arguments=argv) == 2
    expected = "error: model.init_from (--options): is not set; name the run or checkpoint to evaluate\n"
    assert capsys.readouterr().err == expected


def test_a_stage_that_was_not_trained_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main("", evaluate=True, arguments=["--cfg-path", str(EVALUATION)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: model.init_from ({EVALUATION}:")
    assert said.endswith("no such file or folder; train the stage before, or name a checkpoint\n")


def test_of_several_processes_one_speaks(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main("", evaluate=False, arguments=["--cfg-path", "no.yaml"]) == 2
    assert capsys.readouterr().err == ""


def test_a_missing_argument(capsys):
    with pytest.raises(SystemExit) as caught:
        main("", evaluate=False, arguments=[])
    assert caught.value.code == 2
    assert "--cfg-path" in capsys.readouterr().err
