"""Caption datasets built from their configuration: records, processors, drawn captions, messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bita.batch import Batch
from bita.config.parts import CaptionConfig, ImageConfig, ModelConfig, TrainImageConfig
from bita.config.run import RunConfig
from bita.config.schema import BuildInfo, Config, SplitConfig, StorageConfig
from bita.datasets.builders import Needs, build_dataset, build_datasets
from bita.datasets.captions import CaptionDataset, seeded
from bita.datasets.readers import EvalReader, TrainReader
from bita.errors import ConfigError, UserError
from bita.processors.image import EvalImageProcessor, TrainImageProcessor
from tests.datasets.makers import entry, env, prepared


def build(root: Path, split: str = "train", *, train: bool = True, **options: Any) -> CaptionDataset:
    return build_dataset("toy", entry(**options), env(root), split, train=train, needs=Needs(image_size=16))


def edit(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    records = json.loads(path.read_text())
    change(records)
    path.write_text(json.dumps(records))


def read(dataset: CaptionDataset, index: int) -> Batch:
    """One record, as training reads it in epoch 0, at that position."""
    return TrainReader([dataset], 1, torch.device("cpu")).read([(index, 0, index)])[0]


def test_an_item_is_a_caption_with_its_image(tmp_path: Path) -> None:
    dataset = build(prepared(tmp_path, images=3))
    assert len(dataset) == 15
    item = read(dataset, 7)
    assert item["text"] == ["image 1 caption 2"]
    assert item["image_id"] == [1]
    expected = TrainImageProcessor(16).draw(Image.open(tmp_path / "images/1.png"), seeded(1, 0, 7))
    assert torch.equal(item["image"][0], expected)
    assert torch.equal(read(dataset, 7)["image"], item["image"])
    assert dataset.references[1] == [f"Image 1 caption {k} ." for k in range(5)]


def test_an_evaluated_split_uses_the_eval_processors(tmp_path: Path) -> None:
    dataset = build(prepared(tmp_path, images=3), "test", train=False)
    expected = EvalImageProcessor(16)(Image.open(tmp_path / "images/6.png"))
    assert torch.equal(EvalReader(dataset).read([0])[0]["image"][0], expected)


def test_captions_are_drawn_without_repeats_and_padded_where_too_few(tmp_path: Path) -> None:
    dataset = build(prepared(tmp_path, images=3), captions_per_image=4)
    assert len(dataset) == 3
    drawn = [dataset.draw(1, seeded(seed)) for seed in range(40)]
    assert all(len(set(records)) == 4 and set(records) <= set(range(5, 10)) for records in drawn)
    assert len({tuple(records) for records in drawn}) > 20
    many = build(tmp_path, captions_per_image=7).draw(0, seeded(0))
    assert sorted(set(many)) == [0, 1, 2, 3, 4]
    assert len(many) == 7


def test_processors_take_size_and_prompt_of_the_model_and_their_own_keys(tmp_path: Path) -> None:
    prepared(tmp_path, images=2)
    vis = {
        "train": TrainImageConfig(
            name="bita_image_train", min_scale=0.8, rotate90=True, mean=[0.1, 0.2, 0.3]
        ),
        "eval": ImageConfig(name="bita_image_eval", mean=[0.1, 0.2, 0.3]),
    }
    model = ModelConfig(image_size=16, prompt="a photo of", prompt_joint="glued")
    cfg = Config(model, {"toy": entry(vis_processor=vis)}, RunConfig(test_splits=["test"]), env(tmp_path))
    built = build_datasets(cfg)
    train, test = built["train"][0], built["test"][0]
    assert isinstance(train.processors.train_image, TrainImageProcessor)
    assert (train.processors.train_image.scale, train.processors.train_image.rotate90) == ((0.8, 1.0), True)
    assert read(train, 0)["text"] == ["a photo ofimage 0 caption 0"]
    seen = EvalReader(test).read([0])[0]
    assert seen["text"] == ["a photo ofimage 4 caption 0"]  # validation by loss masks the same prompt
    assert seen["image"].shape == (1, 3, 16, 16)
    assert not torch.equal(seen["image"][0], EvalImageProcessor(16)(Image.open(tmp_path / "images/4.png")))
    cfg.run.evaluate = True
    assert list(build_datasets(cfg)) == ["test"]


def test_a_processor_of_another_kind_or_of_training_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^datasets\.toy\.vis_processor\.eval\.name: bita_image_train is for training; name another",
    ):
        build(prepared(tmp_path, images=2), vis_processor={"eval": TrainImageConfig(name="bita_image_train")})
    with pytest.raises(
        ConfigError,
        match=r"vis_processor\.train\.name: bita_caption is no ImageProcessor; name another, such as bita",
    ):
        build(tmp_path, vis_processor={"train": CaptionConfig(name="bita_caption")})


class Upturned(EvalImageProcessor):
    def __call__(self, image: Image.Image) -> torch.Tensor:
        return super().__call__(image.rotate(180))

    def draw(self, image: Image.Image, generator: torch.Generator) -> torch.Tensor:
        return -self(image)


def test_what_extends_a_processor_sees_cached_images_itself(tmp_path: Path) -> None:
    prepared(tmp_path, images=2)
    for train in (False, True):
        dataset = build(tmp_path, train=train, cache_images=True)
        mine = Upturned(16)
        dataset.processors = replace(dataset.processors, train_image=mine, eval_image=mine)
        expected = mine(dataset.open(0))
        found = read(dataset, 0) if train else EvalReader(dataset).read([0])[0]
        assert torch.equal(found["image"][0], -expected if train else expected)


def test_another_image_size_than_the_models_is_refused(tmp_path: Path) -> None:
    vis = {"train": TrainImageConfig(name="bita_image_train", image_size=32)}
    with pytest.raises(
        ConfigError, match=r"toy\.vis_processor\.train\.image_size: 32 is not model\.image_size, 16"
    ):
        build(prepared(tmp_path, images=2), vis_processor=vis)
    with pytest.raises(ConfigError, match=r"vis_processor\.train: wanted 0 < min_scale"):
        build(tmp_path, vis_processor={"train": TrainImageConfig(name="bita_image_train", min_scale=2.0)})


def test_several_annotation_files_and_captions_in_lists(tmp_path: Path) -> None:
    prepared(tmp_path, images=2)
    edit(tmp_path / "annotations/val.json", lambda records: records[0].update(caption=["one", "two"]))
    cfg = entry()
    cfg.build_info.annotations["train"].storage = ["annotations/train.json", "annotations/val.json"]
    dataset = build_dataset("toy", cfg, env(tmp_path), "train", train=True)
    assert len(dataset) == 21
    assert dataset.references[2][:2] == ["one", "two"]


def test_captions_without_a_word_are_not_learnt_from_but_stay_references(tmp_path: Path) -> None:
    prepared(tmp_path, images=2)
    for split in ("train", "test"):
        edit(tmp_path / f"annotations/{split}.json", lambda records: records[1].update(caption=" ."))
    assert len(build(tmp_path)) == 9
    assert build(tmp_path, "test", train=False).references[4][1] == " ."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[3].pop("image"), r"train\.json: record 3: field 'image' is missing"),
        (lambda r: r[3].pop("caption"), r"train\.json: record 3 \(0\.png\): field 'caption' is missing"),
        (lambda r: r[3].pop("image_id"), r"train\.json: record 3 \(0\.png\): field 'image_id' is missing"),
        (
            lambda r: r[3].update(image_id="0"),
            r"record 3 \(0\.png\): image_id '0' is text, but 0 of record 0 \(0\.png\) is a number; write all alike",
        ),
        (lambda r: r[3].update(image_id=1.0), r"field 'image_id' must be an id, .*, not 1\.0"),
        (lambda r: r[3].update(image_id=True), r"field 'image_id' must be an id, .*, not true or false"),
        (lambda r: r[3].update(image_id=2**63), r"field 'image_id' must be an id, .* more than 64 bits"),
        (
            lambda r: r[3].update(caption=["a", 7]),
            r"record 3 \(0\.png\): field 'caption', caption 2 must be text",
        ),
        (
            lambda r: r[3].update(caption="a \ud83d lake"),
            r"record 3 \(0\.png\): field 'caption' holds half of a surrogate pair \(\\ud83d\); write the whole",
        ),
        (lambda r: r[3].update(caption=" \n"), r"record 3 \(0\.png\): caption is empty"),
        (lambda r: r[3].update(caption=[]), r"record 3 \(0\.png\): caption is empty"),
        (lambda r: r[3].update(image_id=1), r"record 3 \(0\.png\): image_id 1, but 0 in an earlier record"),
        (
            lambda r: r[7].update(image_id=0),
            r"record 7 \(1\.png\): image_id 0 is that of 0\.png; ids must differ",
        ),
        (lambda r: r[6].update(image="gone.png", image_id=99), r"record 6: image .*gone\.png is missing"),
        (lambda r: r.insert(2, "text"), r"train\.json: record 2: wanted an object, found text"),
        (lambda r: r.clear(), r"train\.json: the list is empty"),
    ],
)
def test_wrong_records_are_named(tmp_path: Path, change: Callable[[Any], object], message: str) -> None:
    prepared(tmp_path, images=2)
    edit(tmp_path / "annotations/train.json", change)
    with pytest.raises(UserError, match=message) as caught:
        build(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", r"train\.json: not JSON \(character 2: Expecting"),
        ('{"image": 1}', r"train\.json: wanted a list of \{image, caption, image_id\}, found an object"),
    ],
)
def test_annotation_files_that_are_no_list(tmp_path: Path, text: str, message: str) -> None:
    prepared(tmp_path, images=2)
    (tmp_path / "annotations/train.json").write_text(text)
    with pytest.raises(UserError, match=message):
        build(tmp_path)


def test_what_the_configuration_lacks_is_named(tmp_path: Path) -> None:
    prepared(tmp_path, images=2)
    with pytest.raises(ConfigError, match=r"datasets\.toy: no split 'dev'; .* declares train, val, test"):
        build(tmp_path, "dev")
    with pytest.raises(ConfigError, match=r"images\.storage: .*/pictures is no folder"):
        build(tmp_path, build_info=BuildInfo(entry().build_info.annotations, StorageConfig("pictures")))
    with pytest.raises(ConfigError, match=r"annotations\.train\.storage: name an annotation file"):
        build(tmp_path, build_info=BuildInfo({"train": SplitConfig()}, StorageConfig("images")))
    (tmp_path / "annotations/val.json").unlink()
    with pytest.raises(
        ConfigError, match=r"val\.storage: .* is missing; prepare it: python -m bita\.prepare toy"
    ):
        build(tmp_path, "val", train=False)


def test_references_come_from_the_ground_truth_file(tmp_path: Path) -> None:
    prepared(tmp_path, images=2)
    truth = tmp_path / "truth.json"
    cfg = entry()
    cfg.build_info.annotations["test"].ground_truth = str(truth)
    annotations = [{"id": k, "image_id": 4 + k % 2, "caption": f"Reference {k}."} for k in range(4)]
    truth.write_text(
        json.dumps({"images": [], "annotations": [*annotations, {"image_id": 77, "caption": "x"}]})
    )
    dataset = build_dataset("toy", cfg, env(tmp_path), "test", train=False)
    assert dataset.references == {4: ["Reference 0.", "Reference 2."], 5: ["Reference 1.", "Reference 3."]}
    truth.write_text(json.dumps({"annotations": annotations[::2]}))
    with pytest.raises(UserError, match=r"no reference for 1 images of toy test, the first id 5"):
        build_dataset("toy", cfg, env(tmp_path), "test", train=False)
    truth.unlink()
    with pytest.raises(ConfigError, match=r"test\.ground_truth: .*truth\.json: no such file"):
        build_dataset("toy", cfg, env(tmp_path), "test", train=False)


def test_large_jpegs_are_drafted_only_when_asked(tmp_path: Path) -> None:
    prepared(tmp_path, images=2)
    Image.new("RGB", (800, 800)).save(tmp_path / "images/big.jpg")
    edit(
        tmp_path / "annotations/train.json",
        lambda r: r.append({"image": "big.jpg", "caption": "x", "image_id": 50}),
    )
    assert build(tmp_path).open(10).size == (800, 800)
    assert build(tmp_path, jpeg_draft=True).open(10).size == (100, 100)


def test_a_synthetic_dataset_is_generated_once_and_never_mistaken_for_another(tmp_path: Path) -> None:
    settings = {"train": 6, "val": 2, "test": 2, "size": 64, "seed": 1}
    dataset = build(tmp_path / "made", synthetic=settings)
    assert len(dataset) == 30
    stamp = (tmp_path / "made/annotations/train.json").stat().st_mtime_ns
    assert build(tmp_path / "made", synthetic=settings).records == dataset.records
    assert (tmp_path / "made/annotations/train.json").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match=r'datasets\.toy\.synthetic: .* was made with .*"seed": 1'):
        build(tmp_path / "made", synthetic={**settings, "seed": 2})
