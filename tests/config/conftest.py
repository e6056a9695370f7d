"""A small project file, and what loads it, for the tests of configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from bita.config.load import load_config
from bita.config.schema import Config
from bita.errors import ConfigError

MINIMAL = """\
model:
  arch: bita_opt
  model_type: caption_opt2.7b
datasets:
  ucm_caption:
run:
  task: captioning
  test_splits: [test]
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes a project file into an empty current folder and loads it: project(text, *options) → Config."""
    monkeypatch.chdir(tmp_path)

    def load(text: str = MINIMAL, *options: str, **settings: bool) -> Config:
        Path("my.yaml").write_text(text)
        return load_config("my.yaml", options, **settings)

    return load


@pytest.fixture
def problem(project):
    """The message of a project file that is wrong, which must be one line: problem(text, *options) → str."""

    def message(text: str = MINIMAL, *options: str) -> str:
        with pytest.raises(ConfigError) as caught:
            project(text, *options)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2
        return str(caught.value)

    return message
