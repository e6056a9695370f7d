"""Kill a training run again and again, and check that nothing is lost.

    python scripts/checks/crash_test.py --kills 20

Trains a small stage-1 model on synthetic scenes in two torchrun processes: once undisturbed, then under SIGKILL at
random moments. A worker is killed mostly, at least every fourth time inside a checkpoint write; the launcher itself
is killed too, and then started again as a scheduler would. A new checkpoint is completed between two kills. The final
weights must equal the undisturbed run's byte for byte. Exit code 0 only if they do.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bita.commands import command_line, program

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 2
SAVE_EVERY = 4
IMAGES = 96
BATCH = 4
STEPS_PER_EPOCH = IMAGES // (BATCH * PROCESSES)
PATIENCE = 600.0
"""Seconds without a new checkpoint after which the test gives up."""


@dataclass
class Count:
    """What was done to the run, and what it did."""

    worker: int = 0
    inside_a_write: int = 0
    launcher: int = 0
    restarts: int = 0
    steps_redone: int = 0
    kills: list[str] = field(default_factory=list)


def small_run(data: Path, out: Path, *options: str, images: int = IMAGES) -> list[str]:
    """Arguments of `train.py` for a small stage-1 model on synthetic scenes in `data`, as `out/run`."""
    arguments = [
        "--cfg-path",
        str(ROOT / "configs/projects/bita/train/pretrain_stage1_tiny.yaml"),
        "--options",
    ]
    arguments += [f"env.cache_root={data}", f"run.output_dir={out}", "run.name=run", "run.resume=auto"]
    arguments += ["run.device=cpu", "run.log_freq=1", "run.num_workers=1", "run.warmup_steps=5"]
    arguments += [
        "model.image_size=64",
        "model.bridge_size.hidden_size=32",
        "model.bridge_size.intermediate_size=64",
    ]
    arguments += ["model.vit_args.channels=[8,16,16,32]", "datasets.synthetic_caption.cache_images=false"]
    sizes = {"train": images, "val": 8, "test": 8, "size": 64, "seed": 3}
    arguments += [f"datasets.synthetic_caption.synthetic.{key}={value}" for key, value in sizes.items()]
    return [*arguments, *options]


def launch(data: Path, out: Path, epochs: int, log: Path) -> subprocess.Popen[bytes]:
    """Start torchrun on the run folder `out/run`, new or not."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    command += ["--max-restarts=1000", "--monitor-interval=0.1", str(ROOT / "train.py")]
    sizes = [f"run.max_epoch={epochs}", f"run.batch_size_train={BATCH}", f"run.save_every_steps={SAVE_EVERY}"]
    command += small_run(data, out, *sizes)
    with log.open("ab") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=file, stderr=file
        )


def prepare(data: Path, images: int = IMAGES) -> None:
    """Scenes and tokenizers."""
    sizes = [f"--train={images}", "--val=8", "--test=8", "--size=64", "--seed=3"]
    for command in (
        ["scripts/data/make_synthetic.py", str(data / "synthetic"), *sizes],
        [
            "scripts/data/make_tokenizers.py",
            str(data / "tokenizers"),
            str(data / "synthetic/annotations/train.json"),
        ],
    ):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def workers(launcher: int) -> dict[int, int]:
    """Rank → process id of a launcher's living workers."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (entry / "environ").read_bytes().split(b"\0") if parent == launcher else []
        except (OSError, ValueError, IndexError):
            continue
        for variable in variables:
            if variable.startswith(b"RANK="):
                found[int(variable[5:])] = int(entry.name)
    return found


def half_written(run: Path) -> bool:
    """Return whether an unfinished checkpoint lies in a run folder."""
    return any((run / "checkpoints").glob(".tmp-epoch_*"))


def last_step(run: Path) -> int:
    """Step of the newest finished checkpoint; -1 where there is none."""
    try:
        return int(json.loads((run / "checkpoints/last/meta.json").read_text())["step"])
    except (OSError, ValueError):
        return -1


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of a kind in a run's log; a line that a kill cut off is passed over."""
    found = []
    for line in (run / "log.jsonl").read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("event") == kind:
            found.append(event)
    return found


class Torture:
    """One run that is killed `kills` times.

    Args:
        data: scenes and tokenizers.
        out: output folder.
        kills: how many.
        epochs: length of the run.
        dice: decides what is killed, and when.
    """

    def __init__(self, data: Path, out: Path, kills: int, epochs: int, dice: random.Random) -> None:
        self.data, self.out, self.epochs = data, out, epochs
        self.run, self.kills, self.dice, self.count = out / "run", kills, dice, Count()
        out.mkdir(parents=True)
        self.restart()

    def go(self) -> Count:
        """Kill, wait for a new checkpoint, kill again; then let the run end."""
        plan = ["launcher"] * max(1, self.kills // 8) + ["inside a write"] * -(-self.kills // 3)
        plan += ["worker"] * (self.kills - len(plan))
        self.dice.shuffle(plan)
        for number, kind in enumerate(plan[: self.kills], start=1):
            self.wait_for_checkpoint(after=last_step(self.run))
            place = self.kill(kind)
            self.count.kills.append(place)
            print(f"kill {number:2d}: {place}, at step {last_step(self.run)} or later", flush=True)
        while self.launcher.wait() != 0:
            self.restart()
        self.count.restarts = len(events(self.run, "resumed"))
        trained = [int(event["step"]) for event in events(self.run, "train")]
        self.count.steps_redone = len(trained) - len(set(trained))
        return self.count

    def restart(self) -> None:
        """Start the launcher, or start it again as a scheduler would."""
        self.launcher = launch(self.data, self.out, self.epochs, self.out / "output.txt")

    def wait_for_checkpoint(self, after: int) -> None:
        """Return once a checkpoint later than `after` is complete and the workers live."""
        deadline = time.monotonic() + PATIENCE
        while last_step(self.run) <= after or len(workers(self.launcher.pid)) < PROCESSES:
            if self.launcher.poll() is not None:
                if self.launcher.returncode == 0:
                    raise SystemExit("crash test: the run ended before all kills were done; raise the epochs")
                self.restart()
            if time.monotonic() > deadline:
                raise SystemExit(
                    f"crash test: no new checkpoint in {PATIENCE:.0f} s, see {self.run.parent}/output.txt"
                )
            time.sleep(0.05)

    def kill(self, kind: str) -> str:
        """Send one SIGKILL; where it fell."""
        if kind == "launcher":
            time.sleep(self.dice.uniform(0, 0.5))
            self.launcher.kill()
            self.launcher.wait()
            self.count.launcher += 1
            self.restart()
            return "launcher"
        rank = 0 if kind == "inside a write" else self.dice.randrange(PROCESSES)
        victim = workers(self.launcher.pid)[rank]
        if kind == "inside a write":
            return self.kill_inside_a_write(victim)
        time.sleep(self.dice.uniform(0, 0.5))
        os.kill(victim, signal.SIGKILL)
        self.count.worker += 1
        return f"worker {rank}"

    def kill_inside_a_write(self, victim: int) -> str:
        """Wait for a half-written checkpoint, then kill its writer."""
        deadline = time.monotonic() + PATIENCE
        while not half_written(self.run) and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(self.dice.uniform(0, 0.004))
        os.kill(victim, signal.SIGKILL)
        self.count.worker += 1
        time.sleep(0.05)
        if half_written(self.run):
            self.count.inside_a_write += 1
            return "worker 0, inside a checkpoint write"
        return "worker 0, just after a checkpoint write"


@program
def main() -> int:
    """Run both, compare, print; the exit code."""
    parser = command_line(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of what is killed, and when")
    parser.add_argument("--out", type=Path, help="keep everything here; default: a temporary folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what happened here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out: Path = (args.out or Path(temporary)).resolve()
        epochs = -(-args.kills * 3 * SAVE_EVERY // STEPS_PER_EPOCH) + 2
        prepare(out / "data")
        (out / "undisturbed").mkdir(parents=True)
        if launch(out / "data", out / "undisturbed", epochs, out / "undisturbed/output.txt").wait() != 0:
            print((out / "undisturbed/output.txt").read_text(), file=sys.stderr)
            return 1
        count = Torture(out / "data", out / "killed", args.kills, epochs, random.Random(args.seed)).go()
        ends = [out / name / "run/checkpoints/last/model.safetensors" for name in ("undisturbed", "killed")]
        equal = ends[0].read_bytes() == ends[1].read_bytes()
    bound = args.kills * SAVE_EVERY
    print(
        f"{args.kills} kills: {count.worker} of a worker, {count.inside_a_write} of them inside a checkpoint write, "
        f"{count.launcher} of the launcher\n{count.restarts} resumes, {count.steps_redone} of "
        f"{epochs * STEPS_PER_EPOCH} steps redone (at most {bound} allowed)\n"
        f"final weights {'equal the undisturbed run byte for byte: 0 lost' if equal else 'DIFFER'}"
    )
    if args.json is not None:
        args.json.write_text(json.dumps({**vars(count), "kills": args.kills, "equal": equal}))
    enough = count.inside_a_write * 4 >= args.kills and count.launcher >= 1
    if not enough:
        print("too few kills fell inside a checkpoint write, or none hit the launcher; try another --seed")
    return 0 if equal and enough and count.steps_redone <= bound else 1


if __name__ == "__main__":
    sys.exit(main())
