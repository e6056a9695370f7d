"""Whether a run may go on from what an earlier one left: which keys may have changed since.

`run.resume: auto` promises the result of the uninterrupted run, so a key that would change it is refused. Going on
from a checkpoint by its path is a decision, and differences are only warned about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from bita import registry
from bita.config.formats import upgraded
from bita.config.layers import PlainLoader
from bita.config.load import config_from_dict, config_to_dict, config_to_yaml, flat
from bita.config.schema import Config
from bita.errors import ConfigError, UserError

MAY_DIFFER = (
    # where things are
    "env.*",
    "imports",
    "run.output_dir",
    "run.name",
    "run.device",
    "datasets.*.build_info.*",
    "datasets.*.dataset_card",
    "datasets.*.data_type",
    # what the checkpoint replaces
    "model.init_from",
    "model.pretrained",
    "model.finetuned",
    "model.load_*",
    "model.vit_weights",
    "model.text_model",
    "model.opt_model",
    "model.*_tokenizer",
    # how the run is kept, watched and restarted
    "run.resume*",
    "run.num_workers",
    "run.deterministic",
    "run.log_freq",
    "run.save_every_*",
    "run.keep_last",
    "run.max_bad_*",
    "run.on_bad_image",
    "run.world_size",
    "run.dist*",
    # evaluation
    "run.evaluate",
    "run.valid_splits",
    "run.test_splits",
    "run.validate_every",
    "run.batch_size_eval",
    "run.use_*",
    "run.num_beams",
    "run.num_captions",
    "run.max_len",
    "run.min_len",
    "run.*_penalty",
    "run.top_p",
    "run.temperature",
    "run.choose_by",
    "run.views",
    "run.report_metric",
    "run.metrics*",
    "run.loggers*",
    "run.best_by",
)
"""Keys whose change leaves the trained weights what they would have been, or that only say where files are."""
MAY_GROW = ("run.max_epoch",)
"""Keys that may change on purpose, with a warning: a schedule over more epochs is another schedule."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key → (value then, value now), for the keys that decide a step; one that was not there then had its default."""
    then, current = dict(flat(_complete(before))), dict(flat(now))
    deciding = [f"run.{name}" for name in registry.tasks.config(now["run"]["task"]).decides]
    return {
        key: (then.get(key), current.get(key))
        for key in dict.fromkeys([*then, *current])
        if then.get(key) != current.get(key)
        and (key in deciding or not any(fnmatchcase(key, pattern) for pattern in MAY_DIFFER))
    }


def _complete(before: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved configuration with the defaults of keys that came since; as it stands where it cannot be read."""
    try:
        return config_to_dict(config_from_dict(dict(before)))
    except ConfigError:
        return upgraded(before)


def in_words(found: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Differences as 'run.seed (42 then, 7 now)'."""
    return [f"{key} ({then} then, {now} now)" for key, (then, now) in found.items()]


def since_checkpoint(before: Mapping[str, Any], cfg: Config) -> list[str]:
    """Return what differs from the configuration that a checkpoint holds, in words."""
    return in_words(differences(before, json.loads(json.dumps(config_to_dict(cfg)))))


def refuse_another_run(folder: Path, config: Path, cfg: Config) -> None:
    """Raise UserError where the run in `folder`, with the file `config`, cannot be gone on with as `cfg` says."""
    try:
        before = yaml.load(config.read_text(encoding="utf-8"), PlainLoader)
    except (OSError, yaml.YAMLError):
        return
    if not isinstance(before, dict):
        return
    found = differences(before, yaml.load(config_to_yaml(cfg), PlainLoader))
    refused = in_words({key: pair for key, pair in found.items() if key not in MAY_GROW})
    if refused:
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        raise UserError(
            f"run.resume=auto: {folder} was started with another {', '.join(refused[:3])}{more}; undo that, or start a "
            f"new run with run.resume=null, or go on all the same in a new folder with run.resume={folder}"
        )
