"""CLIPScore against the sum written out, on ten images."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from bita.checkpoint import Meta, write_checkpoint
from bita.config.run import RunConfig
from bita.config.schema import Config
from bita.errors import UserError
from bita.inference.clipscore import ClipScorer, clip_score, ref_clip_score
from bita.metrics import CaptionScorer, __main__
from bita.models.bita_itc import BitaITC
from bita.processors.image import EvalImageProcessor
from tests.datasets.makers import entry, write_image
from tests.weights.test_weights import small, stage_1, stage_2

from .test_command import Kept


def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(10, 4, 6, generator=generator), dim=-1)
    texts = F.normalize(torch.randn(10, 6, generator=generator), dim=-1)
    images[3] = -texts[3]
    return images, texts


def by_hand(images: torch.Tensor, text: torch.Tensor) -> float:
    cosines = [
        math.fsum(a * b for a, b in zip(query, text.tolist(), strict=True))
        / math.sqrt(math.fsum(a * a for a in query) * math.fsum(b * b for b in text.tolist()))
        for query in images.tolist()
    ]
    return 2.5 * max(0.0, max(cosines))


def test_ten_images() -> None:
    images, texts = features()
    expected = [by_hand(image, text) for image, text in zip(images, texts, strict=True)]
    assert clip_score(images, texts).tolist() == pytest.approx(expected, abs=1e-6)
    assert expected[3] == 0.0


def test_with_references() -> None:
    images, texts = features()
    references = [texts[n : n + 1].roll(n, dims=1) for n in range(10)]
    plain = clip_score(images, texts)
    found = ref_clip_score(images, texts, references)
    near = float(references[5][0] @ texts[5])
    expected = 2 * float(plain[5]) * near / (float(plain[5]) + near) if near > 0 else 0.0
    assert float(found[5]) == pytest.approx(expected, abs=1e-6)
    assert float(found[0]) == pytest.approx(2 * float(plain[0]) / (float(plain[0]) + 1), abs=1e-6)
    assert float(found[3]) == 0.0


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, BitaITC]:
    """A run of stage 1 that was never trained, and its model."""
    torch.manual_seed(0)
    model = stage_1().eval()
    return keep(tmp_path / "run", model), model


def keep(folder: Path, model: torch.nn.Module) -> Path:
    arch = "bita_former" if isinstance(model, BitaITC) else "bita_opt"
    cfg = Config(small(arch=arch), {"toy": entry()}, RunConfig())
    meta = Meta(epoch=0, step_in_epoch=1, steps_per_epoch=1, step=1, config=asdict(cfg))
    weights = {name: tensor.clone() for name, tensor in model.checkpoint_state().items()}  # type: ignore[operator]
    path = write_checkpoint(
        folder / "checkpoints", meta, {"model.safetensors": lambda path: save_file(weights, path)}
    )
    (folder / "checkpoints/last").symlink_to(path.name)
    return folder


def test_command_scores_ten_images_with_the_runs_own_model(
    scorer: CaptionScorer, run: tuple[Path, BitaITC], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(__main__, "CaptionScorer", lambda spice_dir: Kept(scorer))
    folder, model = run
    names = [f"{n}.png" for n in range(10)]
    truth = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [
            {"image_id": n, "caption": f"scene {n} with {k}"} for n in range(10) for k in range(2)
        ],
    }
    (tmp_path / "annotations").mkdir()
    references, results, target = (
        tmp_path / "annotations/gt.json",
        tmp_path / "results.json",
        tmp_path / "s.json",
    )
    references.write_text(json.dumps(truth))
    results.write_text(json.dumps([{"image_id": n, "caption": f"A scene, number {n}."} for n in range(10)]))
    pixels = []
    for n, name in enumerate(names):
        with Image.open(write_image(tmp_path / "images" / name, n)) as image:
            pixels.append(EvalImageProcessor(56)(image))
    assert __main__.main([str(references), str(results), "--clip", str(folder), "--json", str(target)]) == 0
    content = json.loads(target.read_text())
    with torch.no_grad():
        images = model.image_features(torch.stack(pixels))
        texts = model.text_features(model.tokenize([f"a scene, number {n}" for n in range(10)]))
    expected = [by_hand(image, text) for image, text in zip(images, texts, strict=True)]
    assert [values["CLIPScore"] for values in content["per_image"].values()] == pytest.approx(
        expected, abs=1e-5
    )
    assert content["overall"]["CLIPScore"] == pytest.approx(math.fsum(expected) / 10, abs=1e-5)
    assert max(expected) > min(expected)
    assert all(0 <= values["RefCLIPScore"] <= 2.5 for values in content["per_image"].values())
    assert content["provenance"]["clip_model"].keys() == {"model.safetensors"}
    (tmp_path / "images/3.png").unlink()
    assert __main__.main([str(references), str(results), "--clip", str(folder)]) == 1


def test_a_run_that_writes_captions_is_refused(tmp_path: Path) -> None:
    folder = keep(tmp_path / "run", stage_2())
    with pytest.raises(UserError, match="writes captions; needed is a run of stage 1"):
        ClipScorer(folder)
