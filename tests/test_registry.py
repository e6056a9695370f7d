"""The registry: names to classes."""

from __future__ import annotations

import inspect
import sys

import pytest

from bita import registry
from bita.errors import ConfigError
from bita.registry import Registry

BUILT_IN = [
    (kind, name)
    for kind in (registry.models, registry.tasks, registry.runners, registry.processors, registry.schedules)
    for name in kind.names()
]


@pytest.mark.parametrize(("kind", "name"), BUILT_IN, ids=[name for _, name in BUILT_IN])
def test_every_built_in_name_leads_to_a_class(kind, name):
    assert inspect.isclass(kind.get(name))


def test_published_names_are_there():
    assert {"bita_former", "bita_opt"} <= set(registry.models.names())
    assert {"image_text_pretrain", "captioning"} <= set(registry.tasks.names())
    assert "runner_base" in registry.runners
    assert {"bita_image_train", "bita_image_eval", "bita_caption"} <= set(registry.processors.names())
    assert {"linear_warmup_cosine_lr", "linear_warmup_step_lr"} <= set(registry.schedules.names())


def test_a_decorated_class_is_found_and_stays_itself():
    things = Registry("thing")

    @things.register("mine")
    class Mine:
        pass

    assert things.get("mine") is Mine
    assert Mine.__name__ == "Mine"


def test_a_target_is_imported_when_asked_for(tmp_path, monkeypatch):
    (tmp_path / "late_module.py").write_text("class Late: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    things = Registry("thing", {"late": "late_module:Late"})
    assert "late" in things
    assert "late_module" not in sys.modules
    assert things.get("late").__name__ == "Late"
    assert things.get("late") is things.get("late")


def test_a_taken_name_is_refused():
    things = Registry("thing", {"taken": "os:PathLike"})
    with pytest.raises(ValueError, match="thing 'taken' is registered already, as os:PathLike"):
        things.register("taken")
    assert things.names() == ["taken"]


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(ConfigError) as caught:
        registry.schedules.get("linear_warmup_cosin_lr")
    message = "schedule 'linear_warmup_cosin_lr' is unknown; did you mean 'linear_warmup_cosine_lr'?"
    assert str(caught.value) == message


def test_an_empty_registry_has_nothing_to_suggest():
    with pytest.raises(ConfigError, match=r"^thing 'a' is unknown$"):
        Registry("thing").get("a")
