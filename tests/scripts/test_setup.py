"""What scripts/setup.sh leaves behind, seen from inside the environment that it made."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import transformers

made = pytest.mark.skipif(
    not (Path(sys.prefix) / ".bita-setup").exists(), reason="this environment is not of scripts/setup.sh"
)


@made
@pytest.mark.parametrize("library", [torch, transformers], ids=lambda library: library.__name__)
def test_libraries_are_compiled(library):
    """Where Python may not write, each start compiled them anew: 7.8 seconds to a first caption instead of 3."""
    assert Path(importlib.util.cache_from_source(library.__file__)).exists()
