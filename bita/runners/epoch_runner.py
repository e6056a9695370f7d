"""The training loop by epochs: train, save, validate, keep the best, test it at the end.

A *step* is one batch of the train loader; the weights move once in `run.accum_grad_iters` steps.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from bita import checkpoint, compiling, distributed, registry
from bita.batch import Batch
from bita.checkpoint import Meta
from bita.config.load import config_to_dict
from bita.config.run import unknown_score
from bita.config.schema import Config
from bita.datasets.captions import CaptionDataset, Split
from bita.datasets.loaders import EvalLoader, TrainLoader
from bita.errors import UserError
from bita.files import write_json
from bita.models.base import BitaModel
from bita.precision import autocast
from bita.runners import parallel, seeding, validations
from bita.runners.bad_records import BadRecords
from bita.runners.features import keep_features
from bita.runners.interrupt import Interrupt, Wish
from bita.runners.run_dir import RunDir
from bita.runners.run_log import ProgressBar, RunLog
from bita.runners.state import find_resume, load_state, load_weights, save_state
from bita.runners.stepper import Stepper
from bita.runners.validations import Validations
from bita.runners.watch import StepWatch
from bita.tasks.base import Evaluation, Task, to_device
from bita.weights.outside import outside


class EpochRunner:
    """Trains and evaluates a model on datasets, in a run folder; one of your own extends it (docs/extending.md).

    Args:
        cfg: the resolved configuration.
        model: gets moved to the device of `distributed.setup`.
        task: batch → loss, split → scores.
        datasets: split → datasets.
        run_dir: from `open_run_dir`.

    Attributes:
        args: own keys (`run.runner_args`).
        epoch: the one that the loop is at, from 0, and `step_in_epoch`.
    """

    def __init__(
        self,
        cfg: Config,
        model: BitaModel,
        task: Task,
        datasets: dict[str, list[Split]],
        run_dir: RunDir,
    ) -> None:
        self.cfg, self.run, self.args = cfg, cfg.run, cfg.run.runner_args
        self.task, self.datasets, self.run_dir = task, datasets, run_dir
        self.device = distributed.setup(cfg.run.device)
        self.model = parallel.place(model, self.device, cfg.run)
        if cfg.run.compile:
            compiling.compile_blocks(self.model, self.device)
        self.log = RunLog(run_dir.path, cfg.run.loggers)
        self.interrupt = Interrupt(self.run.save_every_minutes)
        best_by = cfg.run.best_by or registry.tasks.config(cfg.run.task).best_by
        self.validations = Validations(run_dir.path, best_by, task.search())
        self.bad_records = BadRecords(run_dir.path, self.run, self.log.warn)
        self.epoch, self.step_in_epoch = 0, 0
        self.steps_per_epoch = 0

    # Training

    def train(self) -> dict[str, dict[str, float]]:
        """Train to the last epoch, then test the best one; the test scores.

        Raises:
            Interrupted: a signal asked to stop; everything is saved.
            UserError: too many steps in a row had a loss or gradient that was not finite.
        """
        self.prepare()
        with self.interrupt:
            while not self.finished():
                if self.step_in_epoch < self.steps_per_epoch:
                    self.train_epoch()
                if self.validation_is_due():
                    self.validate()
                self.epoch, self.step_in_epoch = self.epoch + 1, 0
            self.load_best()
            return self.evaluate()

    def finished(self) -> bool:
        """Return whether the epoch that comes next is one too many; every process gives the same answer."""
        return self.epoch >= self.run.max_epoch

    def prepare(self) -> None:
        """Loader, optimizer and schedule; then the state of an earlier run, where this one goes on."""
        if self.run.deterministic:
            seeding.make_deterministic()
        sets = [dataset for split in self.run.train_splits for dataset in self.datasets[split]]
        if self.run.cache_features is not None:
            again = self.run.validate_every < self.run.max_epoch  # what is read once is not worth a file
            validated = [data for split in self.run.valid_splits if again for data in self.datasets[split]]
            keep_features(self.model, sets, validated, self.cfg, self.device)
        self.loader = TrainLoader(
            sets,
            self.run,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            device=self.device,
        )
        self.task.begin(sets)
        self.steps_per_epoch = len(self.loader)
        self.stepper = Stepper(self.model, self.task, self.run, self.device)
        self.schedule = registry.schedules.get(self.run.lr_sched).from_run(self.run, self.steps_per_epoch)
        self.watch = StepWatch(gradients_may_overflow=self.stepper.scaler.is_enabled())
        self.outside = outside(self.model) if distributed.is_main() else {}
        self.resume()

    def train_epoch(self) -> None:
        """The rest of the current epoch, from the step that it stands at."""
        self.model.train()
        self.loader.set_epoch(self.epoch, self.step_in_epoch)
        self.log.restart_clock(self.step)
        batches = iter(self.loader)
        progress = self.log.progress(self.title, self.steps_per_epoch, self.step_in_epoch)
        with self.loader.watch(), progress as bar:
            while self.step_in_epoch < self.steps_per_epoch:
                size = min(self.run.accum_grad_iters, self.steps_per_epoch - self.step_in_epoch)
                # Fetched one by one; the first before the seed, since torch's loader draws a number when it begins.
                first = [next(batches)]
                seeding.seed_step(self.run.seed, self.step)
                outputs, images = [], []
                for number, batch in enumerate(chain(first, islice(batches, size - 1)), start=1):
                    moved = to_device(batch, self.device)
                    outputs.append(self.stepper.accumulate(moved, share=1 / size, last=number == size))
                    images += batch["image_id"]
                rate = self.schedule.lr_at(self.epoch, self.step_in_epoch + size - 1)
                norm = self.stepper.optimizer_step(rate)
                self.watch.add(self.step, outputs, norm, images)
                self.step_in_epoch += size
                bar.advance(size)
                self.after_step(size, bar)
        self.save()

    def after_step(self, size: int, bar: ProgressBar) -> None:
        """Log, save, or stop, where one of these is due; `size` steps have just been done."""
        inside = self.step_in_epoch < self.steps_per_epoch
        wish = self.interrupt.wish(now=not inside)
        if self.passed(self.run.log_freq, size):
            self.report(bar)
        if wish is Wish.STOP or (inside and (wish or self.passed(self.run.save_every_steps, size))):
            self.save()
        if wish is Wish.STOP:
            distributed.barrier()
            raise self.interrupt.stopped()

    def passed(self, every: int | None, size: int) -> bool:
        """Return whether one of the last `size` steps of the epoch was an `every`-th."""
        return bool(every) and self.step_in_epoch % every < size  # type: ignore[operator]

    @property
    def title(self) -> str:
        """The current epoch, in words."""
        return f"epoch {self.epoch + 1}/{self.run.max_epoch}"

    @property
    def images_per_step(self) -> int:
        """Images of all processes in a step."""
        return self.run.batch_size_train * distributed.world_size()

    @property
    def step(self) -> int:
        """Steps done since the start of the run."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    def report(self, bar: ProgressBar | None = None) -> None:
        """Fetch what the steps gave since the last report; log it; stop where too many of them were bad."""
        self.bad_records.take(self.loader, self.datasets)
        window = self.watch.fetch()
        for bad in window.bad:
            names = self.loader.image_names(bad.image_ids)
            self.log.warn(f"step {bad.step}: loss or gradient not finite, left out; images {names}")
        if self.run.max_bad_steps and window.bad_in_a_row >= self.run.max_bad_steps:
            raise UserError(
                f"run.max_bad_steps: loss or gradient of {window.bad_in_a_row} steps in a row was not finite, the "
                f"last one with images {self.loader.image_names(window.bad[-1].image_ids)}; {self.last_checkpoint()}"
            )
        if window.spike is not None:
            self.log.warn(
                f"step {self.step}: loss {window.means['loss']:.4g} is {window.spike:.1f} times the usual"
            )
        if window.means:
            values = window.means | {"lr": self.stepper.rate}
            self.log.training(self.title, self.step, self.images_per_step, values, bar)

    # Saving and going on

    def save(self) -> None:
        """Write a checkpoint; when it cannot be written, warn and go on: the ones before stay good."""
        self.report()
        meta = Meta(
            epoch=self.epoch,
            step_in_epoch=self.step_in_epoch,
            steps_per_epoch=self.steps_per_epoch,
            step=self.step,
            best=self.validations.best_entry(),
            config=config_to_dict(self.cfg),
            outside=self.outside,
        )
        parent = self.run_dir.checkpoints
        try:
            folder = save_state(parent, meta, self.model, self.stepper)
            if distributed.is_main():
                checkpoint.point(parent, "last", folder)
                checkpoint.prune(parent, folder, self.run.keep_last, self.validations.names())
                self.log.event("checkpoint", name=folder.name, step=self.step)
        except OSError as error:
            self.log.warn(f"checkpoint of step {self.step} not written ({error}); {self.last_checkpoint()}")
        self.interrupt.saved()

    def resume(self) -> None:
        """Take up the state of an earlier run, where `run.resume` says so and there is one."""
        folder = find_resume(self.cfg, self.run_dir, self.log.warn)
        if folder is None:
            return
        meta = load_state(folder, self.cfg, self.model, self.stepper, self.log.warn)
        self.epoch = meta.epoch
        self.step_in_epoch = meta.step_in_epoch * self.steps_per_epoch // meta.steps_per_epoch
        validated = self.epoch if meta.epoch_done else self.epoch - 1
        self.validations.take_over(folder, validated, self.log.warn)
        self.validations.load(until=validated)
        self.log.say(f"resumed from {folder}")
        self.log.event("resumed", checkpoint=str(folder), step=self.step)

    def last_checkpoint(self) -> str:
        """Return the last good checkpoint, in words."""
        last = self.run_dir.checkpoints / "last"
        return (
            f"the last good checkpoint is {last.resolve()}"
            if last.exists()
            else "no checkpoint was written yet"
        )

    # Evaluation

    def validation_is_due(self) -> bool:
        """Return whether the epoch that was just trained is to be validated and has not been."""
        if not self.run.valid_splits or self.epoch in self.validations:
            return False
        return (self.epoch + 1) % self.run.validate_every == 0 or self.epoch + 1 == self.run.max_epoch

    def validate(self) -> None:
        """Evaluate the validation splits, and let `best` lead to this epoch's checkpoint when none was better."""
        results = self.evaluate_splits(self.run.valid_splits, suffix=f"_epoch{self.epoch + 1}")
        for result in results.values():
            self.check_best_by(result)
        qualities = [result.quality for result in results.values() if result.quality is not None]
        quality = sum(qualities) / len(qualities) if len(qualities) == len(results) else None
        self.validations.add(self.epoch, quality, {key: result.scores for key, result in results.items()})
        if distributed.is_main():
            self.write(self.run_dir.path / validations.FILE, self.validations.as_json())
            self.validations.point_to_best()

    def check_best_by(self, result: Evaluation) -> None:
        """Raise UserError where `run.best_by` names a score that the evaluation has not, and never will have."""
        possible = registry.tasks.config(self.run.task).scores(self.run) or ()
        for name in self.run.best_by or ():
            if name not in result.scores and (name not in possible or not result.notes):
                raise UserError(f"run.best_by: {unknown_score(name, result.scores)}")

    def write(self, path: Path, value: Any) -> None:
        """Write a JSON file of the run; a full disk is a warning, not the end."""
        try:
            path.parent.mkdir(exist_ok=True)
            write_json(path, value)
        except OSError as error:
            self.log.warn(f"{path.name} not written ({error.strerror}): {json.dumps(value)[:2000]}")

    def load_best(self) -> None:
        """The weights of the best validated epoch; those of the last where none was validated."""
        folder = self.validations.best_folder()
        if folder is not None:
            load_weights(folder, self.model)
            self.log.say(f"best epoch: {folder.name}")

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Evaluate the test splits with the weights as they are; write and return `scores.json`."""
        results = self.evaluate_splits(self.run.test_splits)
        scores = {key: result.scores for key, result in results.items()}
        if scores and distributed.is_main():
            self.write(self.run_dir.path / "scores.json", scores)
        self.run_dir.finish()
        self.log.close()
        return scores

    def evaluate_splits(self, splits: list[str], suffix: str = "") -> dict[str, Evaluation]:
        """Evaluate every dataset of some splits; split name (and dataset, where there are several) → outcome."""
        results = {}
        for split in splits:
            for dataset in self.datasets[split]:
                key = split if len(self.datasets[split]) == 1 else f"{split}_{dataset.name}"
                results[key] = self.evaluate_dataset(key, dataset.for_evaluation(), suffix)
        return results

    @torch.no_grad()
    def evaluate_dataset(self, key: str, dataset: CaptionDataset, suffix: str) -> Evaluation:
        """Evaluate one dataset; predictions and the like go to `results/`."""
        self.model.eval()
        seeding.seed_step(self.run.seed, self.epoch)
        loader = EvalLoader(
            dataset,
            self.run,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            kept=bool(suffix),  # of a validation, of which there are several; a test reads the images
        )

        def save(kind: str, value: Any) -> None:
            self.write(self.run_dir.results / f"{key}{suffix}{kind}.json", value)

        progress, precision = self.log.progress(key, len(loader)), autocast(self.device, self.run.amp)
        plain = compiling.eager(self.run.compile)
        parallel.share_statistics(self.model)
        with loader.watch(), parallel.unsharded(self.model), progress as bar, precision, plain:
            result = self.task.evaluate(self.model, dataset, self.watched(loader, bar), save)
        self.bad_records.take(loader, self.datasets)
        self.log.scores(self.title if suffix else "test", key, self.step, result.scores, result.notes)
        return result

    def watched(self, loader: Iterable[Batch], bar: ProgressBar) -> Iterator[Batch]:
        """Yield an evaluation's batches, on the device; a signal ends it between two of them."""
        for batch in loader:
            yield to_device(batch, self.device)
            bar.advance()
            if self.interrupt.signal_name:
                raise self.interrupt.stopped()
