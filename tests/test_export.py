"""Exported models: the same captions, wherever the folder lies, without anything that the run was made from."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file

import bita
from bita.build import build_model
from bita.checkpoint import MODEL_FILE, Meta, copy_checkpoint, verify, write_checkpoint
from bita.config.load import config_to_dict
from bita.config.parts import ImageConfig, LoraSize, ModelConfig
from bita.config.run import RunConfig
from bita.config.schema import Config
from bita.datasets.builders import build_datasets
from bita.datasets.readers import EvalReader
from bita.errors import UserError
from bita.export import config_of, export_folder, export_published
from bita.inference.captioner import Captioner
from bita.inference.clipscore import ClipScorer
from bita.models.bita_itc import BitaITC
from bita.models.bita_lm import BitaLM
from bita.processors.image import EvalImageProcessor
from bita.processors.rgb import ImageOpener, open_rgb
from bita.weights.layouts import published
from bita.weights.load import load_checkpoint
from tests.datasets.makers import entry
from tests.test_files import MASKS, modes, umask
from tests.weights.test_weights import PARITY, small, stage_1

ROOT = Path(__file__).parents[1]


@dataclass
class Trained:
    """A run, what its frozen parts were read from, images, and their captions."""

    run: Path
    sources: Path
    images: list[Path]
    captions: list[str]


def write_run(model_cfg: ModelConfig, run: Path, task: str = "captioning", **options: Any) -> None:
    """A finished run of a model with random weights."""
    model = build_model(model_cfg)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "norm" not in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.2, 0.2]
    processor = ImageConfig(name="bita_image_eval", mean=mean, std=std)
    datasets = {"mine": entry(vis_processor={"eval": processor}, **options)}
    cfg = Config(
        model=model_cfg, datasets=datasets, run=RunConfig(task=task, num_beams=3, output_dir=str(run.parent))
    )
    meta = Meta(epoch=2, step_in_epoch=5, steps_per_epoch=5, step=15, config=config_to_dict(cfg))
    writers = {MODEL_FILE: lambda path: save_file(model.checkpoint_state(), path)}
    write_checkpoint(run / "checkpoints", meta, writers)


def texts(captioner: Captioner, images: list[Path]) -> list[str]:
    return [str(record) for record in captioner.stream(images)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trained")
    sources = folder / "sources"
    shutil.copytree(PARITY / "opt_model", sources / "opt")
    vision = published({n: t for n, t in stage_1().state_dict().items() if n.startswith("visual_encoder.")})
    torch.save({n.removeprefix("visual_encoder."): t for n, t in vision.items()}, sources / "clip_vit_L.pth")
    cfg = small(
        arch="bita_opt",
        opt_model=str(sources / "opt"),
        vit_weights=str(sources / "clip_vit_L.pth"),
        prompt="a photo of",
        image_size=56,
    )
    write_run(cfg, folder / "run")
    generator = np.random.default_rng(0)
    images = []
    for index in range(4):
        pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        images.append(folder / f"{index}.png")
        Image.fromarray(pixels).save(images[-1])
    captions = texts(bita.load(folder / "run"), images)
    assert len(set(captions)) > 1  # they depend on the image
    return Trained(folder / "run", sources, images, captions)


def call(script: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return int(ended.value.code or 0)


def test_a_moved_folder_captions_as_the_run_did_without_its_sources(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("scripts/export.py", str(trained.run), str(tmp_path / "out"), monkeypatch=monkeypatch) == 0
    moved = tmp_path / "elsewhere/model"
    moved.parent.mkdir()
    (tmp_path / "out").rename(moved)
    hidden = trained.sources.with_name("hidden")
    trained.sources.rename(hidden)
    try:
        assert texts(bita.load(moved), trained.images) == trained.captions
        capsys.readouterr()
        images = [str(path) for path in trained.images]
        assert call("caption.py", "--checkpoint", str(moved), *images, monkeypatch=monkeypatch) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"{image}\t{caption}" for image, caption in zip(images, trained.captions, strict=True)
        ]
        export_folder(moved, tmp_path / "again")  # an exported folder can be exported
        assert texts(bita.load(tmp_path / "again"), trained.images) == trained.captions
    finally:
        hidden.rename(trained.sources)
    assert str(trained.sources) not in (moved / "config.yaml").read_text()
    assert str(trained.sources) not in (moved / "meta.json").read_text()
    assert "0.4" in (moved / "config.yaml").read_text()  # the run's normalisation
    assert verify(moved).files.keys() == {MODEL_FILE}
    assert {path.name for path in moved.iterdir()} == {
        "config.yaml",
        "language_model",
        "meta.json",
        MODEL_FILE,
        "tokenizer",
    }


def test_large_models_are_sharded(trained: Trained, tmp_path: Path) -> None:
    export_folder(trained.run, tmp_path / "out", max_shard="60KB")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert len(list((tmp_path / "out/language_model").glob("model-*.safetensors"))) > 2
    assert texts(bita.load(tmp_path / "out"), trained.images) == trained.captions
    next((tmp_path / "out").glob("model-00002-*")).unlink()
    with pytest.raises(UserError, match=r"1 of \d+ shards missing, model-00002"):
        bita.load(tmp_path / "out")


def test_drawn_captions_follow_image_and_seed(trained: Trained) -> None:
    captioner = bita.load(trained.run)
    drawing: dict[str, Any] = {"use_nucleus_sampling": True, "num_captions": 2, "temperature": 2.0}
    drawn = [record.candidates for record in captioner.stream(trained.images, **drawing)]
    backwards = captioner.stream(trained.images[::-1], batch_size=1, **drawing)
    again = [record.candidates for record in backwards]
    assert again[::-1] == drawn
    others = captioner.stream(trained.images, seed=1, **drawing)
    assert [record.candidates for record in others] != drawn


def test_the_published_layout_loads_back(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "checkpoint_best.pth"
    arguments = (str(trained.run), str(out), "--layout", "published")
    assert call("scripts/export.py", *arguments, monkeypatch=monkeypatch) == 0
    content = torch.load(out, weights_only=True)
    assert content.keys() == {"model", "optimizer", "config", "scaler", "epoch"}
    assert content["epoch"] == 2
    original = torch.load(PARITY / "stage2_checkpoint.pth", weights_only=True)["model"]
    frozen = {name for name in original if name.startswith("visual_encoder.")}
    assert content["model"].keys() == (original.keys() - frozen) | {"opt_model.lm_head.weight"}
    captioner = bita.load(trained.run)
    cfg = captioner.model.cfg
    back = BitaLM.from_config(cfg)
    back.external["visual_encoder"] = back.sources["visual_encoder"] = "elsewhere"
    load_checkpoint(back, out)
    assert texts(bita.load(out), trained.images) == texts(captioner, trained.images)
    own = captioner.model.state_dict()
    same = [n for n, t in back.state_dict().items() if torch.equal(t, own[n])]
    assert set(own) - set(same) <= {n for n in own if n.startswith("visual_encoder.")}


def test_a_stage_1_model_is_exported_and_starts_stage_2(tmp_path: Path) -> None:
    write_run(small(freeze_vit=False), tmp_path / "run", task="image_text_pretrain")
    export_folder(tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out/text_tokenizer").is_dir()
    first = build_model(small(init_from=str(tmp_path / "out")))
    assert isinstance(first, BitaITC)
    second = build_model(small(arch="bita_opt", init_from=str(tmp_path / "out")))
    assert torch.equal(second.ift.layers[1].query_ffn.up.weight, first.ift.layers[1].query_ffn.up.weight)
    with pytest.raises(UserError, match="stage-1 checkpoint"):
        bita.load(tmp_path / "out")


def test_a_language_model_trained_along_goes_on_from_the_folder(tmp_path: Path) -> None:
    cfg = small(arch="bita_opt", freeze_vit=False, freeze_lm=False)
    write_run(cfg, tmp_path / "run")
    export_folder(tmp_path / "run", tmp_path / "out")
    language_model = str(tmp_path / "out/language_model")
    tokenizer = str(tmp_path / "out/tokenizer")
    on = replace(cfg, init_from=str(tmp_path / "out"), opt_model=language_model, opt_tokenizer=tokenizer)
    before, after = build_model(replace(cfg, init_from=str(tmp_path / "run"))), build_model(on)
    after_state = after.state_dict()
    assert [n for n, t in before.state_dict().items() if not torch.equal(t, after_state[n])] == []
    with pytest.raises(UserError, match="language model is not complete"):
        build_model(replace(on, opt_model=str(PARITY / "opt_model")))


def test_one_file_in_16_bit_holds_all_of_a_model_with_a_language_model_of_its_own(
    trained: Trained, tmp_path: Path
) -> None:
    tokenizer = str(PARITY / "tokenizers/opt")
    sizes = json.loads((PARITY / "opt_model/config.json").read_text())
    own_lm = {"freeze_lm": False, "opt_model": None, "opt_tokenizer": tokenizer, "opt_config": sizes}
    write_run(small(arch="bita_opt", freeze_vit=False, **own_lm), tmp_path / "run")
    export_folder(tmp_path / "run", tmp_path / "out", half=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.yaml",
        "meta.json",
        MODEL_FILE,
        "tokenizer",
    }
    assert config_of(tmp_path / "out").env.cache_root == "data"
    whole, half = build_model(config_of(tmp_path / "run").model), bita.load(tmp_path / "out").model
    own = half.state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(own[name], tensor.half().float() if tensor.is_floating_point() else tensor), name
    bita.load(tmp_path / "out").caption(trained.images)
    with pytest.raises(UserError, match="language model was trained along"):
        export_folder(trained.run, tmp_path / "again", half=True)
    assert not (tmp_path / "again").exists()


def test_lora_is_merged_in_both_layouts(trained: Trained, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    cfg = bita.load(trained.run).model.cfg
    write_run(replace(cfg, init_from=None, lora=LoraSize(r=4)), tmp_path / "run")
    captions = texts(bita.load(tmp_path / "run"), trained.images)
    export_folder(tmp_path / "run", tmp_path / "out")
    loaded = bita.load(tmp_path / "out")
    assert texts(loaded, trained.images) == captions
    assert loaded.model.cfg.lora is None
    export_published(tmp_path / "run", tmp_path / "out.pth")
    content = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    merged = loaded.model.opt_model.state_dict()
    changed = "model.decoder.layers.0.self_attn.q_proj.weight"
    assert torch.equal(content[f"opt_model.{changed}"], merged[changed])
    assert not torch.equal(merged[changed], BitaLM.from_config(cfg).opt_model.state_dict()[changed])


@pytest.mark.parametrize("captioning", [True, False])
def test_bands_and_draft_travel_with_a_run(trained: Trained, tmp_path: Path, captioning: bool) -> None:
    """What a run's own evaluation sees of an image, its captioner, its export and its CLIPScore see too."""
    (tmp_path / "images").mkdir()
    scene = np.random.default_rng(1).integers(0, 3000, (60, 70, 5)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "images/deep.tif", scene, photometric="minisblack", planarconfig="contig")
    Image.effect_noise((700, 600), 90).convert("RGBA").convert("CMYK").save(tmp_path / "images/large.jpg")
    names = ["deep.tif", "large.jpg"]
    records = [{"image": name, "caption": "a field", "image_id": n} for n, name in enumerate(names)]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/test.json").write_text(json.dumps(records))
    options = {"bands": [3, 2, 1], "jpeg_draft": True}
    cfg = bita.load(trained.run).model.cfg if captioning else small(freeze_vit=False)
    write_run(replace(cfg, init_from=None), tmp_path / "run", **options)
    export_folder(tmp_path / "run", tmp_path / "out")
    run = config_of(tmp_path / "run")
    run.env.cache_root = str(tmp_path)
    run.run.test_splits, run.run.evaluate = ["test"], True
    (dataset,) = build_datasets(run)["test"]
    seen = EvalReader(dataset).read([0, 1])[0]["image"]
    in_order = EvalImageProcessor(56, [0.5, 0.4, 0.3], [0.2, 0.2, 0.2])(
        open_rgb(tmp_path / "images/deep.tif")
    )
    assert not torch.equal(seen[0], in_order)
    assert ImageOpener(draft=(56, 56)).open(tmp_path / "images/large.jpg").size < (700, 600)
    for folder in (tmp_path / "run", tmp_path / "out"):
        loaded = bita.load(folder) if captioning else ClipScorer(folder)
        own = torch.stack([loaded.processors.evaluated(tmp_path / "images" / name) for name in names])
        assert torch.equal(own, seen)
        if isinstance(loaded, Captioner):
            written = loaded.model.generate(seen, loaded.settings)
            images = [tmp_path / "images" / name for name in names]
            assert texts(loaded, images) == [captions[0] for captions in written]


def test_nothing_is_overwritten(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        export_folder(trained.run, tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        export_folder(tmp_path / "nowhere", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@MASKS
def test_all_that_is_written_can_be_shared_as_far_as_the_umask_says(
    trained: Trained, tmp_path: Path, mask: int, mode: int
) -> None:
    with umask(mask):
        write_run(bita.load(trained.run).model.cfg, tmp_path / "run")
        export_folder(tmp_path / "run", tmp_path / "out", max_shard="60KB")
        export_published(tmp_path / "run", tmp_path / "out.pth")
        copy_checkpoint(tmp_path / "run/checkpoints/epoch_0003", tmp_path / "copied")
    assert len(list((tmp_path / "out").rglob("model-*.safetensors"))) > 4
    assert modes(tmp_path) == {mode}
