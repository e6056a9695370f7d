"""A dataset and classes of one's own in a configuration."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from bita.registry import models
from tests.config.conftest import MINIMAL

MY_DATASET = """\
datasets:
  my_caption:
    build_info:
      annotations: {train: {storage: my/train.json}, night: {storage: my/night.json}}
      images: {storage: my/images}
"""


def test_a_dataset_of_ones_own_is_a_file_in_a_folder(project):
    Path("sets/deep").mkdir(parents=True)
    Path("sets/deep/my.yaml").write_text(MY_DATASET)
    text = MINIMAL.replace("ucm_caption:", "my_caption:").replace("[test]", "[night]")
    cfg = project(text + "env: {dataset_configs: [sets]}\n")
    assert cfg.datasets["my_caption"].build_info.annotations["night"].storage == "my/night.json"
    assert cfg.datasets["my_caption"].vis_processor["train"].name == "bita_image_train"


def test_or_an_entry_in_the_project_file(project):
    entry = yaml.safe_load(MY_DATASET)["datasets"]
    cfg = project(yaml.safe_dump(yaml.safe_load(MINIMAL) | {"datasets": entry}), "run.test_splits=[night]")
    assert cfg.datasets["my_caption"].build_info.images.storage == "my/images"


def test_two_files_with_the_same_dataset(problem):
    Path("sets").mkdir()
    Path("sets/my.yaml").write_text(MY_DATASET.replace("my_caption", "ucm_caption"))
    message = problem(MINIMAL + "env: {dataset_configs: [sets]}\n")
    assert message == "ucm_caption (sets/my.yaml:2): a dataset of this name is described in another file too"


def test_a_typing_error_in_a_dataset_file(problem):
    Path("sets").mkdir()
    Path("sets/my.yaml").write_text(
        MY_DATASET.replace("    build_info:", "    cache_image: true\n    build_info:")
    )
    message = problem("datasets: [my_caption]\nenv: {dataset_configs: [sets]}\n", *MODEL)
    assert message.startswith("datasets.my_caption.cache_image (sets/my.yaml:3): unknown key; did you mean")


MODEL = ("model.arch=bita_opt", "model.model_type=caption_opt2.7b")


def test_imports_register_classes_of_ones_own(project, monkeypatch, forgotten):
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my_former_module.py").write_text(
        "from bita.registry import models\n@models.register('my_former')\nclass MyFormer: pass\n"
    )
    text = "imports: [my_former_module]\n" + MINIMAL.replace("arch: bita_opt", "arch: my_former")
    text = text.replace("captioning", "image_text_pretrain")
    cfg = project(text)
    assert models.get(cfg.model.arch).__name__ == "MyFormer"
    assert cfg.imports == ["my_former_module"]


def test_imports_that_fail(problem):
    assert problem("imports: [no_such_module]\n" + MINIMAL) == (
        "imports (my.yaml:1): no_such_module cannot be imported (ModuleNotFoundError: No module named 'no_such_module')"
    )
    assert (
        problem("imports: os\n" + MINIMAL)
        == "imports (my.yaml:1): wanted a list of modules, such as [my_models]"
    )
    assert "can only stand in a project file" in problem(MINIMAL, "imports=[os]")
