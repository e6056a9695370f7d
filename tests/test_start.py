"""How a program starts: what is imported for its help, for a mistake, and for a first caption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from bita.datasets.synthetic.writer import generate

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "torch",
    "transformers",
    "timm",
    "torchvision",
    "scipy",
    "matplotlib",
    "gradio",
    "rasterio",
    "jinja2",
}
NOT_FOR_HELP = HEAVY | {"numpy", "omegaconf", "PIL"}
NOT_FOR_A_CAPTION = {
    *(
        "rasterio",
        "geopandas",
        "pyproj",
        "shapely",
        "pyarrow",
        "pandas",
        "matplotlib",
        "tensorboard",
        "gradio",
    ),
    *("sklearn", "pycocoevalcap", "fairscale", "peft", "bitsandbytes", "gguf"),
    *("bita.app", "bita.datasets.synthetic", "bita.metrics", "bita.prepare", "bita.reports", "bita.runners"),
    *("bita.scenes.captioning", "bita.tasks"),
}
CALLS = """
import contextlib, io, json, sys
from importlib import import_module

said, seen = {}, set(sys.modules)
for call in json.loads(sys.argv[1]):
    module, name = call[0].split(":")
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            code = getattr(import_module(module), name)(call[1:])
        except SystemExit as end:
            code = end.code
    said[" ".join(call)] = [code, errors.getvalue(), sorted({new.split(".")[0] for new in set(sys.modules) - seen})]
print(json.dumps(said))
"""
CAPTION = """
import gc, json, sys
from bita.cli import caption

code = caption(sys.argv[1:])
print(json.dumps([code, gc.isenabled(), gc.get_freeze_count(), sorted(sys.modules)]))
"""


def fresh(code: str, *arguments: str) -> Any:
    """What a new process prints last, read as JSON; and the lines before that."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    return json.loads(last), lines


def test_help_and_mistakes_import_nothing_heavy(tmp_path: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    light = [target for name, target in scripts.items() if name not in ("bita-prepare", "bita-metrics")]
    (tmp_path / "image.jpg").touch()
    image, nowhere = str(tmp_path / "image.jpg"), str(tmp_path / "run")
    mistakes = [
        ["bita.cli:caption", "--checkpoint", nowhere, image],
        ["bita.cli:calibrate", nowhere],
        ["bita.cli:search", "ships", str(tmp_path), "--checkpoint", nowhere],
        ["bita.app.__main__:main", "--checkpoint", nowhere],
    ]
    helps = [[target, "--help"] for target in [*light, "bita.reports.__main__:main"]]
    others = [[target, "--help"] for target in scripts.values() if target not in light]
    said, _ = fresh(CALLS, json.dumps([*helps, *mistakes, *others]))
    for code, _, imported in [said[" ".join(call)] for call in helps]:
        assert code == 0
        assert not NOT_FOR_HELP & set(imported)
    for code, error, imported in [said[" ".join(call)] for call in mistakes]:
        assert (code, error) == (1, f"error: checkpoint {nowhere}: no such file or folder\n")
        assert not HEAVY & set(imported)
    for code, _, imported in [said[" ".join(call)] for call in others]:
        assert code == 0
        assert not HEAVY & set(imported)


def test_a_first_caption_imports_what_it_needs_and_looks_for_no_garbage(tmp_path: Path) -> None:
    generate(tmp_path, train=1, val=1, test=1, size=128, seed=5)
    image = next((tmp_path / "images").iterdir())
    (code, looks, kept, modules), lines = fresh(CAPTION, str(image))
    assert code == 0
    assert len(lines) == 1
    assert len(lines[0].split()) > 3
    assert not NOT_FOR_A_CAPTION & set(modules)
    assert looks  # again
    assert kept > 100_000


def test_the_package_itself_imports_no_library() -> None:
    code = "import json, sys; old = {*sys.modules}; import bita; print(json.dumps([*{*sys.modules} - old]))"
    imported, _ = fresh(code)
    others = {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert others == {"bita"}
