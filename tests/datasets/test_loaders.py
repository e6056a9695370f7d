"""Loaders: who reads what, in which order, and that neither workers nor ranks nor a resume change it."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from bita.batch import Batch
from bita.config.parts import CaptionConfig
from bita.config.run import RunConfig
from bita.datasets.builders import Needs, build_dataset
from bita.datasets.captions import CaptionDataset
from bita.datasets.loaders import EvalLoader, TrainLoader
from bita.errors import ConfigError, UserError
from tests.datasets.makers import entry, env, prepared


def build(root: Path, split: str = "train", name: str = "toy", **options: Any) -> CaptionDataset:
    return build_dataset(
        name, entry(**options), env(root), split, train=split == "train", needs=Needs(image_size=16)
    )


def run(**options: Any) -> RunConfig:
    return RunConfig(**{"batch_size_train": 7, "batch_size_eval": 5, "num_workers": 0, **options})


def texts(batches: Iterable[Batch]) -> list[str]:
    return [text for batch in batches for text in batch["text"]]


def same(left: Iterable[Batch], right: Iterable[Batch]) -> bool:
    pairs = list(zip(left, right, strict=True))
    return bool(pairs) and all(
        torch.equal(a["image"], b["image"]) and a["text"] == b["text"] and a["image_id"] == b["image_id"]
        for a, b in pairs
    )


def test_batches_are_whole_and_the_last_incomplete_one_is_dropped(tmp_path: Path) -> None:
    loader = TrainLoader([build(prepared(tmp_path))], run())
    batches = list(loader)
    assert len(loader) == len(batches) == 60 // 7
    assert all(batch["image"].shape == (7, 3, 16, 16) and len(batch["text"]) == 7 for batch in batches)
    assert len(set(texts(batches))) == 56
    assert all(
        text.startswith(f"image {i} ") for batch in batches for text, i in zip(*_named(batch), strict=True)
    )


def _named(batch: Batch) -> tuple[list[str], list[int]]:
    return batch["text"], batch["image_id"]


def test_epochs_differ_and_repeat(tmp_path: Path) -> None:
    dataset = build(prepared(tmp_path))
    loader = TrainLoader([dataset], run())
    epochs = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        epochs.append(list(loader))
    assert same(epochs[0], epochs[2])
    assert texts(epochs[0]) != texts(epochs[1])
    other = TrainLoader([dataset], run(seed=43))
    assert texts(other) != texts(epochs[0])


@pytest.mark.parametrize("options", [{}, {"captions_per_image": 3}])
def test_workers_and_resume_change_nothing(tmp_path: Path, options: dict[str, int]) -> None:
    dataset = build(prepared(tmp_path, images=24), **options)
    plain = TrainLoader([dataset], run())
    working = TrainLoader([dataset], run(num_workers=2))
    plain.set_epoch(3)
    working.set_epoch(3)
    batches = list(plain)
    assert same(batches, working)
    working.set_epoch(3, 2)
    assert same(batches[2:], working)
    partly = iter(working)
    next(partly)
    working.set_epoch(3)
    assert same(batches, working)


@pytest.mark.parametrize("cached", [False, True])
def test_drawn_templates_and_cached_crops_survive_a_resume(tmp_path: Path, cached: bool) -> None:
    text = {
        "train": CaptionConfig(name="bita_caption", templates=["{caption} from above", "seen: {caption}"])
    }
    dataset = build(prepared(tmp_path), text_processor=text, cache_images=cached)
    loader = TrainLoader([dataset], run())
    loader.set_epoch(1)
    whole = list(loader)
    fresh = TrainLoader([dataset], run())
    fresh.set_epoch(1, 3)
    assert same(whole[3:], fresh)
    assert 10 < sum(text.startswith("seen: image") for text in texts(whole)) < 46


def test_skipped_steps_are_not_read(tmp_path: Path) -> None:
    dataset = build(prepared(tmp_path))
    loader = TrainLoader([dataset], run())
    for keys in list(loader.sampler)[:5]:
        for place, _, _ in keys:
            record = dataset.records[place]
            (tmp_path / "images" / record.image).write_bytes(b"broken")
    loader.set_epoch(0, 8)
    assert list(loader) == []
    loader.set_epoch(0)
    with pytest.raises(UserError):
        list(loader)


def test_ranks_share_a_global_batch(tmp_path: Path) -> None:
    dataset = build(prepared(tmp_path))
    whole = list(TrainLoader([dataset], run(batch_size_train=8)))
    ranks = [
        list(TrainLoader([dataset], run(batch_size_train=4), rank=rank, world_size=2)) for rank in range(2)
    ]
    for step, batch in enumerate(whole):
        joined = torch.cat([ranks[0][step]["image"], ranks[1][step]["image"]])
        assert torch.equal(batch["image"], joined)
        assert batch["text"] == ranks[0][step]["text"] + ranks[1][step]["text"]


def test_drawn_captions_stand_together_and_share_a_crop(tmp_path: Path) -> None:
    dataset = build(prepared(tmp_path), captions_per_image=5)
    opened: list[str] = []
    batch = next(iter(TrainLoader([_counting(dataset, opened)], run(batch_size_train=3))))
    assert batch["image"].shape == (3, 3, 16, 16)
    assert [len(set(batch["image_id"][k : k + 5])) for k in (0, 5, 10)] == [1, 1, 1]
    assert len(set(batch["text"])) == 15
    assert len(opened) == 3


def _counting(dataset: CaptionDataset, opened: list[str]) -> CaptionDataset:
    """Note every image that is opened."""
    original = dataset.open

    def noted(record: int) -> Any:
        opened.append(dataset.records[record].image)
        return original(record)

    dataset.open = noted  # type: ignore[method-assign]
    return dataset


@pytest.mark.parametrize("options", [{}, {"captions_per_image": 2}])
def test_cached_images_give_the_same_records_and_close_pictures(
    tmp_path: Path, options: dict[str, int]
) -> None:
    plain = list(TrainLoader([build(prepared(tmp_path), **options)], run()))
    dataset = build(tmp_path, cache_images=True, **options)
    assert dataset.cache is not None
    assert dataset.cache.pixels.shape == (12, 19, 19, 3)
    cached = list(TrainLoader([dataset], run(num_workers=2)))
    assert [batch["text"] for batch in plain] == [batch["text"] for batch in cached]
    assert all((a["image"] - b["image"]).abs().mean() < 0.2 for a, b in zip(plain, cached, strict=True))


def test_a_cache_is_reused_remade_when_an_image_changes_and_travels_as_a_path(tmp_path: Path) -> None:
    first = build(prepared(tmp_path), cache_images=True).cache
    assert first is not None
    stamp = first.path.stat().st_mtime_ns
    again = build(tmp_path, cache_images=True).cache
    assert again is not None
    assert (again.path, again.path.stat().st_mtime_ns) == (first.path, stamp)
    (tmp_path / "images/0.png").write_bytes((tmp_path / "images/1.png").read_bytes())
    other = build(tmp_path, cache_images=True).cache
    assert other is not None
    assert other.path != first.path
    assert (other.pixels[0] == other.pixels[1]).all()
    assert len(pickle.dumps(other)) < 1000
    assert (pickle.loads(pickle.dumps(other)).pixels == other.pixels).all()


def test_eval_from_the_cache_is_eval_from_the_files(tmp_path: Path) -> None:
    plain = EvalLoader(build(prepared(tmp_path), "test"), run())
    assert same(plain, EvalLoader(build(tmp_path, "test", cache_images=True), run()))


def test_cached_and_uncached_datasets_mix(tmp_path: Path) -> None:
    prepared(tmp_path / "a")
    prepared(tmp_path / "b")
    mixed = [build(tmp_path / "a", name="a", cache_images=True), build(tmp_path / "b", name="b")]
    assert texts(TrainLoader(mixed, run(num_workers=1))) == texts(
        TrainLoader([build(tmp_path / "a"), build(tmp_path / "b")], run())
    )
    cached = [build(tmp_path / name, name=name, cache_images=True) for name in "ab"]
    single = TrainLoader(cached[:1], run(batch_size_train=60))
    both = TrainLoader(cached, run(batch_size_train=120))
    assert next(iter(both))["image"].shape == (120, 3, 16, 16)
    ids = next(iter(single))["image_id"]
    assert Counter(ids) == dict.fromkeys(range(12), 5)


def test_pictures_belong_to_their_texts_when_cached_datasets_are_joined(tmp_path: Path) -> None:
    prepared(tmp_path / "a", images=6)
    prepared(tmp_path / "b", images=6)
    plain = [build(tmp_path / name, name=name) for name in "ab"]
    cached = [build(tmp_path / name, name=name, cache_images=True) for name in "ab"]
    left, right = (next(iter(TrainLoader(sets, run(batch_size_train=60)))) for sets in (plain, cached))
    assert left["text"] == right["text"]
    assert (left["image"] - right["image"]).abs().mean((1, 2, 3)).max() < 0.4


@pytest.mark.parametrize("cached", [False, True])
def test_images_of_several_datasets_are_told_apart(tmp_path: Path, cached: bool) -> None:
    """Both have an image 0; with `model.itc_positives: same_image` they must not count as one."""
    names = ("a", "b")
    datasets = [
        build(prepared(tmp_path / name), name=name, captions_per_image=5, cache_images=cached)
        for name in names
    ]
    batch = next(iter(TrainLoader(datasets, run(batch_size_train=24))))
    assert Counter(batch["image_id"]) == dict.fromkeys([*range(12), *range(10**12, 10**12 + 12)], 5)


def test_ratios_are_met_and_no_record_repeats_before_its_dataset_is_through(tmp_path: Path) -> None:
    datasets = [build(prepared(tmp_path / "a", images=400, captions=5), name="a")]
    datasets.append(build(prepared(tmp_path / "b", images=40), name="b"))
    loader = TrainLoader(datasets, run(train_dataset_ratios={"a": 1.0, "b": 3.0}))
    order = loader.sampler.order()
    share = float((order >= 2000).float().mean())
    assert len(order) == 2200
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 2200) ** 0.5
    counts = Counter(order[order >= 2000].tolist())
    assert max(counts.values()) - min(counts.values()) <= 1
    assert max(Counter(order[order < 2000].tolist()).values()) == 1


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ({"a": 1.0}, r"missing: toy; unknown: a"),
        ({"toy": 1.0, "b": 2.0}, r"missing: none; unknown: b"),
        ({"toy": -1.0}, "negative"),
        ({"toy": 0.0}, "all zero"),
    ],
)
def test_ratios_that_do_not_fit_are_refused(tmp_path: Path, ratios: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainLoader([build(prepared(tmp_path))], run(train_dataset_ratios=ratios))


def test_fewer_records_than_a_batch_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"60 records are less than one batch of 40 on each of 2 processes"):
        TrainLoader([build(prepared(tmp_path))], run(batch_size_train=40), world_size=2)


@pytest.mark.parametrize("world_size", [1, 2, 5, 13])
def test_evaluation_sees_every_image_once_over_all_ranks(tmp_path: Path, world_size: int) -> None:
    dataset = build(prepared(tmp_path), "test")
    seen: list[int] = []
    for rank in range(world_size):
        loader = EvalLoader(dataset, run(), rank=rank, world_size=world_size)
        batches = list(loader)
        assert len(batches) == len(loader)
        seen += [image_id for batch in batches for image_id in batch["image_id"]]
    assert sorted(seen) == list(range(24, 36))


def test_a_training_split_is_evaluated_without_crops(tmp_path: Path) -> None:
    batch = next(iter(EvalLoader(build(prepared(tmp_path)), run())))
    expected = next(
        iter(EvalLoader(build_dataset("toy", entry(), env(tmp_path), "train", train=False), run()))
    )
    assert batch["text"] == expected["text"]
    assert batch["image_id"] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_in_one_line(tmp_path: Path, workers: int) -> None:
    dataset = build(prepared(tmp_path), "test")
    (tmp_path / "images/30.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(UserError, match=r"30\.png: image does not open") as caught:
        list(EvalLoader(dataset, run(num_workers=workers)))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"30\.png: image does not open"):
        build(tmp_path, "test", cache_images=True)
    assert not list((tmp_path / "cache").glob("*.npy"))
