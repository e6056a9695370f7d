"""The keys of `run`: how a run goes, whatever is trained on what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from bita import registry
from bita.config.keys import REPLACED, SEED, Fault, FilePath, WithParts, key, keys_of, name_of, own_keys_of
from bita.files import in_utf8
from bita.registry import nearest

Choice = Literal["likelihood", "consensus"]
MOST_VIEWS = 8


def unknown_score(name: str, known: Iterable[str]) -> str:
    """Return what is wrong with the name of a score that there is not."""
    known = sorted(known)
    return f"unknown score {name!r}; {nearest(name, known)}{', of ' * bool(known)}{', '.join(known)}"


LATEST = "latest"
"""The link in `run.output_dir` to the run that was started last."""


@dataclass
class RunConfig(WithParts):
    """How a run goes."""

    task: str = name_of(registry.tasks, "image_text_pretrain")
    task_args: Any = keys_of("task")
    """Own keys of the task."""
    runner: str = name_of(registry.runners, "runner_base")
    runner_args: Any = keys_of("runner")
    """Own keys of the runner."""
    output_dir: FilePath = "output/run"
    name: str | None = None
    seed: int = key(42, at_least=0, at_most=SEED)
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Of several processes: `ddp`, each with the whole model; `fsdp`, each with its share of the language model."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA when there is one; or `cpu`, `cuda`."""
    amp: bool = True
    threads: int | None = key(None, at_least=1, at_most=1024)
    """Of torch, on a CPU; null: one for each core that other programs leave free at the start (docs/reliability.md)."""
    compile: bool = False
    """Training computes blocks of encoder, bridge and language model as torch.compile makes them: that takes a minute
    at the first step, and rounds otherwise."""
    deterministic: bool = False
    evaluate: bool = False
    resume: FilePath | None = None
    """`auto`: go on from the newest complete checkpoint in the run's folder; or a path; None: start anew."""
    resume_ckpt_path: FilePath | None = None

    train_splits: list[str] = field(default_factory=lambda: ["train"])
    valid_splits: list[str] = field(default_factory=list)
    test_splits: list[str] = field(default_factory=list)
    train_dataset_ratios: Annotated[dict[str, float], REPLACED] | None = key(None, at_least=0)

    max_epoch: int = key(5, at_least=1)
    batch_size_train: int = key(16, at_least=1)
    batch_size_eval: int = key(16, at_least=1)
    num_workers: int = key(4, at_least=0, at_most=1024)
    accum_grad_iters: int = key(1, at_least=1)
    clip_grad_norm: float | None = key(None, at_least=0)

    lr_sched: str = name_of(registry.schedules, "linear_warmup_cosine_lr")
    lr_sched_args: Any = keys_of("lr_sched")
    """Own keys of the schedule; the published ones follow."""
    init_lr: float = key(1e-4, at_least=0)
    vit_lr_scale: float = key(1.0, at_least=0)
    """What the vision encoder's rate is of the schedule's, where it is trained."""
    min_lr: float = key(0.0, at_least=0)
    warmup_lr: float = key(1e-6, at_least=0)
    warmup_steps: int = key(0, at_least=0)
    lr_decay_rate: float | None = key(None, at_least=0)
    weight_decay: float = key(0.05, at_least=0)
    beta2: float = key(0.999, at_least=0, below=1)

    num_beams: int = key(5, at_least=1)
    max_len: int = key(22, at_least=2)
    min_len: int = key(5, at_least=0)
    length_penalty: float = key(1.0, at_least=-100, at_most=100)
    repetition_penalty: float = key(1.0, above=0)
    num_captions: int = key(1, at_least=1)
    use_nucleus_sampling: bool = False
    top_p: float = key(0.9, above=0, at_most=1)
    temperature: float = key(1.0, above=0)
    choose_by: Choice = "likelihood"
    """`consensus`: of the captions that a search found, the one that is most like the others, each counted by its
    probability; more beams find more. `likelihood`: the likeliest, as published."""
    views: int = key(1, at_least=1, at_most=MOST_VIEWS)
    """How an image is seen where captions are written: as it is, turned by a quarter 3 times, and those 4 mirrored; the
    language model reads the mean of what the queries say of the first n. 1: as published."""
    speed: Literal["fast", "reference"] = "fast"
    """`reference`: the plain way of everything that has a faster one with the same result, for comparisons."""
    report_metric: bool = True
    metrics: Annotated[dict[str, Any], REPLACED] = own_keys_of(registry.metrics)
    """What captions are scored by: names, each with its own keys. Empty: the usual ones (docs/metrics.md)."""
    best_by: list[str] | None = None
    """The scores whose sum, on the validation splits, decides the best epoch; one whose name ends in `loss` counts the
    other way. null: what the task says, for captioning as published [CIDEr, Bleu_4], else [loss]."""
    validate_every: int = key(1, at_least=1)
    """Validate after every n-th epoch, and after the last."""
    loggers: Annotated[dict[str, Any], REPLACED] = own_keys_of(registry.loggers)
    """Where events and curves go: names, each with its own keys. Empty: `jsonl` and `tensorboard`."""

    log_freq: int = key(50, at_least=1)
    save_every_steps: int | None = key(None, at_least=1)
    save_every_minutes: float | None = key(None, above=0)
    keep_last: int = key(2, at_least=1)
    """Checkpoints kept besides the best one."""
    cache_features: int | None = key(None, at_least=1)
    """n: what the frozen encoder says of n random views of each image is kept on the disk and read in their turn, epoch
    by epoch; None: every epoch draws and encodes new ones, as published."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What a broken or missing image is: the end, or a record that is left out, counted and listed."""
    max_bad_fraction: float = key(0.01, at_least=0, at_most=1)
    """With `skip`: stop when more than this share of a split's images was left out."""
    max_bad_steps: int = key(10, at_least=0)
    """Stop when the loss or gradient of so many steps in a row was not finite; 0: never."""

    world_size: int | None = key(None, at_least=1)
    dist_url: str | None = None
    distributed: bool | None = None
    use_dist_eval_sampler: bool | None = None

    def faults(self) -> Iterator[Fault]:
        """Keys that do not suit each other."""
        if not in_utf8(self.output_dir):
            yield (
                "output_dir",
                f"{self.output_dir!r} holds bytes that are not UTF-8; name another folder",
            )
        name = self.name
        if name is not None and (
            name in ("", ".", "..", LATEST) or "/" in name or len(name.encode(errors="replace")) > 255
        ):
            yield "name", f"{name!r} cannot be a folder's name in run.output_dir; choose another one"
        if self.num_captions > self.num_beams and not self.use_nucleus_sampling:
            needed = f"needs run.num_beams of at least as many, not {self.num_beams}, or run.use_nucleus_sampling=true"
            yield "num_captions", f"{self.num_captions} {needed}"
        if self.min_len > self.max_len:
            yield "min_len", f"{self.min_len} is more than run.max_len, {self.max_len}"
        known = registry.tasks.config(self.task).scores(self)
        for score in self.best_by or () if known is not None else ():
            if score not in known:
                yield "best_by", unknown_score(score, known)
        if self.best_by == []:
            yield "best_by", "names no score; set it, such as [CIDEr, Bleu_4], or null"
        for name in registry.schedules.config(self.lr_sched).needs:
            if getattr(self, name) is None:
                yield name, f"{self.lr_sched} needs it, such as 0.9"
