"""What every shipped, recorded and published configuration came to, for ever: key by key, the same values.

`tests/fixtures/resolved/resolved.json` holds, a line each, what files resolved to when it was written. Keys that came
later may stand beside them; `python tests/config/test_resolved.py` adds files that it lacks, and changes nothing that
it has.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bita.config.layers import to_yaml
from bita.config.load import CONFIGS, config_from_dict, config_to_dict, load_config

FOLDER = Path(__file__).parents[1] / "fixtures/resolved"
FIXTURE = FOLDER / "resolved.json"
FILES = {
    str(path.relative_to(CONFIGS / "projects")): path
    for path in sorted((CONFIGS / "projects").rglob("*.yaml"))
} | {"published.yaml": FOLDER / "published.yaml"}
RESOLVED: dict[str, Any] = json.loads(FIXTURE.read_text()) if FIXTURE.is_file() else {}


WHOLE = ("opt_config", "vit_args", "synthetic")
"""Keys of other libraries, and what is counted: nothing may stand beside what was there."""


def lost(before: Any, now: Any, key: str = "") -> list[str]:
    """Keys whose value is another one than before; a key that was null may be gone, others may have come."""
    if isinstance(before, dict) and isinstance(now, dict) and not key.endswith(WHOLE):
        return [
            problem
            for name, value in before.items()
            if not (value is None and name not in now)
            for problem in lost(value, now.get(name), f"{key}.{name}")
        ]
    return [] if before == now and type(before) is type(now) else [f"{key[1:]}: {before!r}, now {now!r}"]


def resolve(path: Path) -> dict[str, Any]:
    """The resolved dictionaries of a file, without weights."""
    return config_to_dict(load_config(path, need_files=False))


@pytest.mark.parametrize("name", FILES)
def test_a_file_resolves_to_what_it_did(name):
    assert lost(RESOLVED[name], resolve(FILES[name])) == []


@pytest.mark.parametrize("name", RESOLVED)
def test_a_run_that_recorded_it_resolves_to_the_same(name, tmp_path):
    """The line of the fixture is what `meta.json` of a run of that time holds, and as YAML its `config.yaml`."""
    assert lost(RESOLVED[name], config_to_dict(config_from_dict(RESOLVED[name]))) == []
    (tmp_path / "config.yaml").write_text(to_yaml(RESOLVED[name]))
    assert lost(RESOLVED[name], resolve(tmp_path / "config.yaml")) == []


if __name__ == "__main__":
    found = {name: resolve(path) for name, path in FILES.items() if name not in RESOLVED} | RESOLVED
    lines = (f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    FIXTURE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    sys.exit(0)
