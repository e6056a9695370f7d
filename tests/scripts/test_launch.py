"""The shell scripts that start runs: what they call, and what they do with a signal. Nothing is trained here."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def stub(folder: Path, name: str, text: str) -> Path:
    """A program of that name, first in the path of what is started."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def launch(tmp_path):
    """Calls `launch` with a python that only notes how it was called; the calls, or the process where it failed."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/launch.sh").write_text((ROOT / "scripts/launch.sh").read_text())
    project = tmp_path / "configs/projects/bita/train/stage.yaml"
    project.parent.mkdir(parents=True)
    project.write_text("")
    calls = tmp_path / "calls"
    python = f'echo "$*" >> {calls}\nif [[ "$*" == *wrong* ]]; then echo "error: wrong" >&2; exit 2; fi'
    stub(tmp_path / "bin", "python", python)

    def call(*arguments: str, **environment: str) -> list[str] | subprocess.CompletedProcess[str]:
        variables = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", **environment}
        command = 'source scripts/launch.sh; launch train.py train/stage "$@"'
        answer = subprocess.run(
            ["bash", "-c", command, "-", *arguments],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        return calls.read_text().splitlines() if answer.returncode == 0 else answer

    return call


def test_one_process_needs_no_torchrun(launch):
    config = "configs/projects/bita/train/stage.yaml"
    assert launch("--options", "a=1", NPROC="1") == [f"train.py --cfg-path {config} --options a=1"]


def test_several_processes_are_started_again_by_torchrun(launch):
    check, run = launch(NPROC="4", MAX_RESTARTS="7")
    assert check.endswith("--check")
    assert "torch.distributed.run --standalone --nproc-per-node=4 --max-restarts=7 train.py" in run


@pytest.mark.parametrize(
    ("visible", "processes"),
    [("", 1), ("-1", 1), ("2", 1), ("0,1", 2), ("0,1,-1,2", 2), ("GPU-1a-2b,GPU-3c-4d", 2), (None, 3)],
)
def test_a_process_for_each_gpu_that_can_be_seen(launch, tmp_path, visible, processes):
    stub(tmp_path / "bin", "nvidia-smi", 'for i in 0 1 2; do echo "GPU $i: X (UUID: x)"; done')
    calls = launch(**({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}))
    assert (f"--nproc-per-node={processes}" in calls[-1]) == (processes > 1)
    assert len(calls) == (1 if processes == 1 else 2)


def test_several_machines_meet_at_the_endpoint(launch):
    _, run = launch(NPROC="1", NNODES="2:4", RDZV_ENDPOINT="node1:29500", RDZV_ID="mine")
    wanted = "--nnodes=2:4 --rdzv-backend=c10d --rdzv-endpoint=node1:29500 --rdzv-id=mine --nproc-per-node=1"
    assert wanted in run
    failed = launch(NPROC="1", NNODES="2")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "error: NNODES=2: set RDZV_ENDPOINT=host:port, the same on every machine\n"


@pytest.mark.parametrize(
    ("variable", "value"), [("NPROC", "0"), ("NPROC", "two"), ("NPROC", "-1"), ("MAX_RESTARTS", "no")]
)
def test_what_is_no_number_starts_nothing(launch, tmp_path, variable, value):
    failed = launch(**{"NPROC": "2", variable: value})
    assert failed.returncode == 2
    assert failed.stderr.startswith(f"error: {variable}={value}: wanted a number of ")
    assert not (tmp_path / "calls").exists()


def test_a_mistake_in_the_configuration_is_said_once_and_not_restarted(launch, tmp_path):
    failed = launch("--options", "wrong=1", NPROC="2")
    assert (failed.returncode, failed.stderr) == (2, "error: wrong\n")
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_a_signal_to_a_stage_script_reaches_the_training_and_its_exit_code_comes_back(tmp_path):
    copied = tmp_path / "scripts/bita/train/pretrain_stage1.sh"
    for path in (
        "scripts/launch.sh",
        "scripts/bita/train/pretrain_stage1.sh",
        "configs/projects/bita/train/pretrain_stage1.yaml",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text((ROOT / path).read_text())
    started = tmp_path / "started"
    stub(tmp_path / "bin", "python", f'trap "exit 75" TERM\necho > {started}\nwhile :; do sleep 0.05; done')
    variables = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "NPROC": "1"}
    script = subprocess.Popen(["bash", str(copied)], env=variables)
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    script.send_signal(signal.SIGTERM)
    assert script.wait(60) == 75


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs util-linux's setpriv")
def test_a_pipeline_that_is_killed_takes_its_training_with_it(launch, tmp_path):
    """It trained on alone, and the next start began a new run beside it."""
    said = tmp_path / "said"
    works = f'trap "echo ended > {said}; exit 75" TERM\necho began > {said}\nwhile :; do sleep 0.05; done'
    stub(tmp_path / "bin", "python", works)
    script = subprocess.Popen(
        ["bash", "-c", "source scripts/launch.sh; launch train.py train/stage; echo on"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "NPROC": "1"},
    )

    def wait(text: str) -> None:
        deadline = time.monotonic() + 60
        while not (said.exists() and said.read_text() == text):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    wait("began\n")
    script.kill()
    wait("ended\n")


def test_images_that_changed_are_prepared_anew_but_not_under_a_run_that_was_interrupted(pipeline, tmp_path):
    def prepared() -> list[str]:
        return next(
            call for call in reversed(pipeline("finetune.sh", "MINE", "OUT")) if "own_caption" in call
        )

    assert prepared()[-1] == "--overwrite"
    unfinished = tmp_path / "here/OUT/.unfinished"
    unfinished.touch()
    assert prepared()[-1] == "--every-split"
    unfinished.touch()
    stub(tmp_path / ".venv/bin", "python", 'echo "error: differs" >&2; exit 1')
    failed = subprocess.run(
        ["bash", "../scripts/finetune.sh", "MINE", "OUT"],
        cwd=tmp_path / "here",
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[1].endswith(f"remove {unfinished} to train anew with what it is now")


@pytest.mark.parametrize("line", ["finetune.sh '' OUT", "rsicd_small.sh '' OUT", "box.sh a '' OUT"])
@pytest.mark.usefixtures("pipeline")
def test_a_path_that_is_empty_is_no_folder(tmp_path, line):
    failed = subprocess.run(
        ["bash", *shlex.split(f"../scripts/{line}")], cwd=tmp_path / "here", capture_output=True, text=True
    )
    assert not (tmp_path / "calls").exists()
    assert (failed.returncode, failed.stderr) == (2, "error: a path is empty; is a variable not set?\n")


@pytest.fixture
def pipeline(tmp_path):
    """Runs a script from another folder with a python that only notes how it was called; the calls."""
    for path in (ROOT / "scripts").rglob("*.sh"):
        copied = tmp_path / path.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(path.read_text())
    (tmp_path / "scripts/setup.sh").write_text("")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / ".venv").mkdir()
    calls = tmp_path / "calls"
    stub(tmp_path / ".venv/bin", "python", f'echo "$*" >> {calls}')
    (tmp_path / "here").mkdir()

    def run(script: str, *arguments: str) -> list[list[str]]:
        command = ["bash", f"../scripts/{script}", *arguments]
        subprocess.run(command, cwd=tmp_path / "here", env=os.environ | {"NPROC": "1"}, check=True)
        return [line.split() for line in calls.read_text().splitlines()]

    return run


def test_the_packages_model_takes_two_stages_and_one_fine_tuning(pipeline, tmp_path):
    calls, here = pipeline("box.sh", "UCM", "RSICD", "OUT"), f"{tmp_path}/here"
    assert [call[1:] for call in calls if call[0] == "scripts/prepare_data.py"] == [
        ["rsicd_caption", f"{here}/RSICD", f"{here}/OUT/data/rsicd"],
        ["ucm_caption", f"{here}/UCM", f"{here}/OUT/data/ucm"],
    ]
    trained = [Path(call[2]).stem for call in calls if call[0] == "train.py"]
    assert trained == ["pretrain_stage1_small", "pretrain_stage2_small", "caption_ft_box"]
    assert [call[0] for call in calls if call[0] not in ("scripts/prepare_data.py", "train.py")] == [
        "scripts/data/make_tokenizers.py",
        "scripts/export.py",
        "scripts/calibrate.py",
    ]
    assert calls[-2][1:] == [f"{here}/OUT/box", f"{here}/OUT/model", "--half"]
    assert calls[-1][1:] == [f"{here}/OUT/model", "--cache-root", f"{here}/OUT/data"]


@pytest.mark.parametrize(
    ("line", "trains"),
    [
        (
            "quickstart.sh OUT",
            [
                "pretrain_stage1_small_synthetic",
                "pretrain_stage2_small_synthetic",
                "caption_ft_small_synthetic",
            ],
        ),
        ("rsicd_small.sh SOURCE OUT", ["pretrain_stage1_small", "pretrain_stage2_small", "caption_ft_small"]),
        ("finetune.sh SOURCE OUT", ["finetune_own"]),
        ("benchmarks/decoders.sh OUT gpt2", ["pretrain_stage1_tiny", "decoder_gpt2"]),
    ],
)
def test_a_pipeline_writes_where_its_script_was_started(pipeline, tmp_path, line, trains):
    calls = pipeline(*line.split())
    trained = [Path(call[2]).stem for call in calls if call[0] == "train.py" and "--check" not in call]
    assert trained == trains
    (scored,) = [call for call in calls if "bita.reports.evaluation" in call or "compare_decoders" in call[0]]
    assert f"{tmp_path}/here/OUT" in scored
    for call in calls:
        outputs = [word for word in call if word.startswith(("run.output_dir=", "env.cache_root="))]
        assert all(f"={tmp_path}/here/OUT/" in word for word in outputs)


def test_a_pipeline_goes_on_where_it_was_interrupted(pipeline, tmp_path):
    """A fault in stage 2 cost the hour of stage 1 again: what is finished since the start is asked for once."""
    out = tmp_path / "here/OUT"
    with (tmp_path / ".venv/bin/python").open(
        "a"
    ) as python:  # fails as told, else leaves a run where it trains
        python.write(
            f"""
case "$*" in *"$(cat {tmp_path}/faulty)"*) exit 1;; *train.py*--once*) exit;; *train.py*) ;; *) exit;; esac
for word in "$@"; do case $word in run.output_dir=*) folder=${{word#run.output_dir=}};; esac; done
mkdir -p "$folder/run" && ln -sfn run "$folder/latest" && sleep 0.05 && touch "$folder/run/run.json"
"""
        )

    def once(faulty: str) -> list[bool]:
        """Whether each stage that was started was asked for once."""
        (tmp_path / "faulty").write_text(faulty)
        (tmp_path / "calls").write_text("")
        with contextlib.suppress(subprocess.CalledProcessError):
            pipeline("quickstart.sh", "OUT")
        calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
        return ["--once" in call for call in calls if call[0] == "train.py"]

    assert once("caption_ft") == [False, False, False]
    assert once("reports") == [True, True, False]
    time.sleep(0.05)
    (out / "pretrain_stage1/latest/run.json").touch()  # as trained again, configured in another way
    assert once("nothing") == [True, False, False]
    assert not (out / ".unfinished").exists()
    assert once("caption_ft") == [False, False, False]


def test_slurm_job_hands_the_signal_on_waits_for_the_save_and_queues_again(tmp_path):
    programs = tmp_path / "bin"
    stub(
        programs,
        "scontrol",
        f'if [ "$1" = requeue ]; then echo "$2" > {tmp_path}/requeued; else echo node7; fi',
    )
    stub(programs, "srun", 'exec "$@"')
    training = stub(
        tmp_path,
        "training.sh",
        f'trap "sleep 0.3; echo saved > {tmp_path}/saved; exit 75" TERM\n'
        f'echo "$NNODES $RDZV_ENDPOINT $RDZV_ID $*" > {tmp_path}/started\nwhile :; do sleep 0.05; done',
    )
    job = subprocess.Popen(
        ["bash", str(ROOT / "scripts/slurm.sbatch"), str(training), "--options", "a=1"],
        env={
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "41000",
            "SLURM_NNODES": "2",
            "SLURM_JOB_NODELIST": "node[7-8]",
        },
    )
    started = tmp_path / "started"
    deadline = time.monotonic() + 60
    while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert started.read_text() == "2 node7:21000 41000.0 --options a=1\n"
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 75
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "requeued").read_text() == "41000\n"
