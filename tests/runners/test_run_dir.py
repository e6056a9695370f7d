import json
import os
import subprocess
import sys

import pytest
from toy_run import toy_config

from bita.config.load import config_from_dict, config_to_dict
from bita.config.parts import CaptioningConfig, LoraSize, ScstConfig, TrainImageConfig
from bita.config.schema import DatasetConfig
from bita.errors import UserError
from bita.runners import run_dir as run_dir_module
from bita.runners.resume import differences
from bita.runners.run_dir import finished_run, open_run_dir

HOLD_THE_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_process():
    """Holds the lock of a run folder until told to end."""
    started = []

    def hold(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD_THE_LOCK, str(folder / ".lock")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout.readline() == b"locked\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()


def test_runs_without_a_name_never_share_a_folder(tmp_path):
    runs = [open_run_dir(toy_config(tmp_path)) for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    assert (tmp_path / "latest").resolve() == runs[-1].path.resolve()


def test_a_run_is_finished_for_its_very_configuration_alone(tmp_path):
    cfg = toy_config(tmp_path)
    assert finished_run(cfg) is None
    run = open_run_dir(cfg)
    assert finished_run(cfg) is None
    run.finish()
    assert finished_run(cfg) == run.path.resolve()
    assert finished_run(toy_config(tmp_path, seed=7)) is None
    assert finished_run(toy_config(tmp_path, num_beams=7)) is None  # other captions, of the same weights


def test_folder_holds_what_repeats_the_run(tmp_path):
    import yaml

    cfg = toy_config(tmp_path, name="mine", seed=7)
    run = open_run_dir(cfg)
    assert run.path == tmp_path / "mine"
    about = json.loads((run.path / "run.json").read_text())
    assert about["seed"] == 7
    assert about["processes"] == 1
    assert about["packages"].keys() >= {"python", "torch", "transformers", "timm"}
    assert about["command"]
    saved = config_from_dict(yaml.safe_load((run.path / "config.yaml").read_text()))
    assert config_to_dict(saved) == config_to_dict(cfg)


def test_name_that_is_taken_is_an_error_that_says_how_to_go_on(tmp_path):
    open_run_dir(toy_config(tmp_path, name="mine"))
    with pytest.raises(UserError, match=r"exists already; set run\.resume=auto"):
        open_run_dir(toy_config(tmp_path, name="mine"))


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "/tmp/x"])
def test_name_may_not_leave_the_output_folder(tmp_path, name):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"run\.name .* must be a plain folder name"):
        open_run_dir(toy_config(tmp_path, name=name))


def test_auto_takes_up_the_latest_unfinished_run_only(tmp_path):
    first = open_run_dir(toy_config(tmp_path))
    first.lock.close()
    again = open_run_dir(toy_config(tmp_path, resume="auto"))
    assert again.path.resolve() == first.path.resolve()
    again.finish()
    again.lock.close()
    assert open_run_dir(toy_config(tmp_path, resume="auto")).path.resolve() != first.path.resolve()


def test_torchrun_restart_takes_up_the_run_without_being_asked(tmp_path, monkeypatch):
    first = open_run_dir(toy_config(tmp_path))
    first.lock.close()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert open_run_dir(toy_config(tmp_path)).path.resolve() == first.path.resolve()


def test_torchrun_restart_goes_on_in_the_folder_of_its_own_launch(tmp_path, monkeypatch):
    """Whatever else was started in the same place since; and a name that was refused is refused again."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    first = open_run_dir(toy_config(tmp_path))
    first.lock.close()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
    open_run_dir(toy_config(tmp_path, name="other")).lock.close()
    with pytest.raises(UserError, match="exists already"):
        open_run_dir(toy_config(tmp_path, name=first.path.name))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "third")
    with pytest.raises(UserError, match="exists already"):
        open_run_dir(toy_config(tmp_path, name=first.path.name))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    assert open_run_dir(toy_config(tmp_path)).path.resolve() == first.path.resolve()


def save_something(run):
    """A checkpoint that has no more than a name and a meta."""
    (run.checkpoints / "epoch_0001").mkdir(parents=True)
    (run.checkpoints / "epoch_0001/meta.json").write_text("{}")


@pytest.mark.parametrize("name", ["mine", None])
def test_a_run_that_ended_before_its_first_save_binds_nobody(tmp_path, name):
    first = open_run_dir(toy_config(tmp_path, name=name, seed=7))
    first.lock.close()
    again = open_run_dir(toy_config(tmp_path, name=name, resume="auto", seed=8))
    assert again.path.resolve() == first.path.resolve()
    assert json.loads((again.path / "run.json").read_text())["seed"] == 8
    assert "seed: 8" in (again.path / "config.yaml").read_text()
    save_something(again)
    again.lock.close()
    with pytest.raises(UserError, match=r"run\.seed \(8 then, 9 now\)"):
        open_run_dir(toy_config(tmp_path, name=name, resume="auto", seed=9))


def test_auto_goes_on_with_harmless_changes_and_refuses_the_others(tmp_path):
    first = open_run_dir(toy_config(tmp_path, name="mine", init_lr=1e-5))
    save_something(first)
    first.lock.close()
    before = (tmp_path / "mine/config.yaml").read_bytes()
    for change in ({"seed": 7}, {"batch_size_train": 3}, {"model__num_query_token": 5}):
        ((key, value),) = change.items()
        with pytest.raises(
            UserError, match=rf"mine was started with another \w+\.{key.split('__')[-1]}"
        ) as caught:
            open_run_dir(toy_config(tmp_path, name="mine", resume="auto", **({"init_lr": 1e-5} | change)))
        assert f"{value} now" in str(caught.value)
        assert f"run.resume={tmp_path}/mine" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "mine/config.yaml").read_bytes() == before
    changes = {"num_workers": 1, "log_freq": 1, "valid_splits": ["val"], "max_epoch": 9, "keep_last": 5}
    again = open_run_dir(toy_config(tmp_path, name="mine", resume="auto", init_lr=1e-5, **changes))
    assert again.path == (tmp_path / "mine").resolve()


def test_what_was_not_said_before_is_a_difference_too(tmp_path):
    """A dataset, ratios, keys of a part: what was null, empty or not there then had its default."""

    def configured(*names, **entries):
        cfg = toy_config(tmp_path)
        cfg.datasets = {name: entries.get(name, DatasetConfig()) for name in names}
        return cfg

    before = config_to_dict(configured("a", "b"))
    assert differences(before, before) == {}
    cropped = DatasetConfig(vis_processor={"train": TrainImageConfig(name="bita_image_train", min_scale=0.2)})
    found = differences(before, config_to_dict(configured("a", "b", a=cropped)))
    assert found["datasets.a.vis_processor.train.min_scale"] == (None, 0.2)
    assert differences(before, config_to_dict(configured("b", "a"))) == {"datasets": (["a", "b"], ["b", "a"])}
    assert next(iter(differences(before, config_to_dict(configured("a", "b", "c"))))) == "datasets"
    now = configured("a", "b")
    now.run.train_dataset_ratios, now.model.lora, now.model.freeze_lm = (
        {"a": 0.7, "b": 0.3},
        LoraSize(r=4),
        True,
    )
    now.model.vit_args = now.model.vit_args | {"qkv_bias": False}
    found = differences(before, config_to_dict(now))
    assert found["run.train_dataset_ratios.a"] == (None, 0.7)
    assert found["model.vit_args.qkv_bias"] == (None, False)
    assert found["model.lora.r"] == (None, 4)
    del before["run"]["clip_grad_norm"], before["model"]["vit_layers"]  # an older version wrote none
    now = configured("a", "b")
    assert differences(before, config_to_dict(now)) == {}
    now.run.clip_grad_norm = 1.0
    assert differences(before, config_to_dict(now)) == {"run.clip_grad_norm": (None, 1.0)}


def test_the_longest_caption_decides_a_step_of_the_self_critical_stage_alone(tmp_path):
    def of(task, args, **options):
        cfg = toy_config(tmp_path, **options)
        cfg.run.task, cfg.run.task_args = task, args
        return config_to_dict(cfg)

    plain, critical = ("captioning", CaptioningConfig()), ("captioning_scst", ScstConfig())
    assert differences(of(*plain, max_len=6), of(*plain, max_len=9)) == {}
    found = differences(of(*critical, max_len=6), of(*critical, max_len=9))
    assert found == {"run.max_len": (6, 9)}


def test_run_in_use_is_left_alone(tmp_path, other_process, monkeypatch):
    monkeypatch.setattr(run_dir_module, "LOCK_WAIT", 0.5)
    first = open_run_dir(toy_config(tmp_path, name="mine"))
    first.lock.close()
    other_process(first.path)
    with pytest.raises(UserError, match="another process is training there"):
        open_run_dir(toy_config(tmp_path, name="mine", resume="auto"))
    assert open_run_dir(toy_config(tmp_path, resume="auto")).path.resolve() != first.path.resolve()


def test_lock_is_free_as_soon_as_its_process_is_killed(tmp_path, other_process):
    first = open_run_dir(toy_config(tmp_path, name="mine"))
    first.lock.close()
    process = other_process(first.path)
    process.kill()
    process.wait()
    assert open_run_dir(toy_config(tmp_path, name="mine", resume="auto")).lock is not None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_that_cannot_be_written_is_a_one_line_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"run\.output_dir .* cannot be written \(Permission denied\)"):
        open_run_dir(toy_config(tmp_path / "run"))


def test_output_folder_that_is_a_file_is_a_one_line_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run\.output_dir .*/file: is a file; name a folder"):
        open_run_dir(toy_config(tmp_path / "file"))
