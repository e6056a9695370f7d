"""The model that the package brings: whole, small, and what it says of pictures that are known.

`python tests/test_box.py UCM_FOLDER` records what it says, after another model has taken its place.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import bita
from bita.checkpoint import verify
from bita.datasets.synthetic.writer import generate
from bita.packages import BOX
from tests.test_export import call

RECORDED = Path(__file__).parent / "fixtures/box/captions.json"
SCENES = {"train": 1, "val": 1, "test": 4, "size": 128, "seed": 5}
UCM = [f"{number}.jpg" for number in range(30, 2100, 210)]


def scenes(folder: Path) -> list[Path]:
    """Four drawn scenes."""
    generate(folder, **SCENES)
    images = json.loads((folder / "annotations/test.json").read_text())
    return [folder / "images" / name for name in dict.fromkeys(record["image"] for record in images)]


def test_it_is_whole_small_and_speaks_of_no_machine() -> None:
    assert verify(BOX).files.keys() == {"model.safetensors"}
    assert (BOX / "model.safetensors").stat().st_size <= 16 * 2**20
    for name in ("config.yaml", "meta.json"):
        assert "/tmp" not in (BOX / name).read_text()
        assert "/work" not in (BOX / name).read_text()


def test_drawn_scenes_have_the_captions_that_they_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = scenes(tmp_path)
    recorded = json.loads(RECORDED.read_text())["scenes"]
    assert [str(caption) for caption in bita.load().caption(images)] == recorded
    capsys.readouterr()
    assert call("caption.py", *map(str, images), monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{image}\t{caption}" for image, caption in zip(images, recorded, strict=True)
    ]


def test_photographs_have_the_captions_that_they_had(bita_data: Path) -> None:
    images = [bita_data / "ucm_captions/imgs" / name for name in UCM]
    recorded = json.loads(RECORDED.read_text())
    captions = bita.load().caption(images)
    assert [str(caption) for caption in captions] == recorded["ucm"]
    assert [caption.confidence for caption in captions] == pytest.approx(recorded["confidence"], abs=0.02)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        drawn = [str(caption) for caption in bita.load().caption(scenes(Path(folder)))]
    photographs = [Path(sys.argv[1]) / "imgs" / name for name in UCM]
    found = bita.load().caption(photographs)
    confidence = [round(caption.confidence or 0, 3) for caption in found]
    said = {"scenes": drawn, "ucm": [str(caption) for caption in found], "confidence": confidence}
    RECORDED.parent.mkdir(exist_ok=True)
    RECORDED.write_text(json.dumps(said, indent=1) + "\n")
