"""What a frozen encoder says, kept: the numbers of encoding anew, under a name that changes with all that matters."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_run import SIZE, toy_config, toy_dataset, toy_model, toy_runner

from bita.datasets import faults, features
from bita.datasets.cache import open_cache
from bita.datasets.captions import seeded
from bita.datasets.features import Views, encoder_hash, open_features
from bita.errors import UserError
from bita.processors.image import EvalImageProcessor
from bita.runners.features import keep_features


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory):
    return toy_dataset(tmp_path_factory.mktemp("images"))


def brightness(images: torch.Tensor) -> torch.Tensor:
    """An encoder: the means of an image's channels, as one token of width three."""
    return images.mean(dim=(2, 3))[:, None]


def test_every_view_is_what_the_encoder_says_of_it(data, tmp_path: Path) -> None:
    kept = open_features(Views(data, 3, seed=7), brightness, tmp_path / "f.npy", batch_size=4, workers=0)
    assert kept.tokens.shape == (3, 6, 1, 3)
    assert kept.tokens.dtype == np.float16
    for turn, row in ((0, 0), (2, 5), (4, 3)):
        image = data.processors.train_image.draw(data.open(data.groups[row][0]), seeded(7, turn % 3, row))
        torch.testing.assert_close(
            kept.read([row], turn)[0].float(), brightness(image[None])[0], rtol=1e-3, atol=1e-3
        )
    assert list(tmp_path.iterdir()) == [tmp_path / "f.npy"]


def test_views_of_cached_images_are_those_that_training_makes(data, tmp_path: Path, monkeypatch) -> None:
    names = data.image_names
    cache = open_cache(names, data.folder, data.opener, SIZE + 4, tmp_path / "cache")
    plain = Views(data, 2, seed=7).key("")
    monkeypatch.setattr(data, "cache", cache)
    views = Views(data, 2, seed=7)
    assert views.key("") != plain
    kept = open_features(views, brightness, tmp_path / "f.npy", batch_size=4, workers=0)
    for turn, rows in ((0, [0, 3]), (1, [5, 1])):
        pixels = data.cached_pixels([data.groups[row][0] for row in rows])
        images = data.processors.train_image.batch(pixels, [seeded(7, turn, row) for row in rows])
        torch.testing.assert_close(kept.read(rows, turn).float(), brightness(images), rtol=1e-3, atol=1e-3)


def test_the_file_is_made_once(data, tmp_path: Path) -> None:
    for encode in (brightness, None):  # nobody encodes the second time
        open_features(Views(data, None, seed=0), encode, tmp_path / "f.npy", batch_size=4, workers=0)  # type: ignore[arg-type]


def test_the_name_holds_all_that_matters(data) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 2)
    encoder = encoder_hash(layer, "bf16 cuda")
    keys = [
        Views(data, 2, seed=1).key(encoder),
        Views(data, 2, seed=2).key(encoder),
        Views(data, 3, seed=1).key(encoder),
    ]
    keys += [
        Views(data, None, seed=1).key(encoder),
        Views(data, 2, seed=1).key(encoder_hash(layer, "None cpu")),
    ]
    with torch.no_grad():
        layer.bias[0].add_(1e-3)
    keys.append(Views(data, 2, seed=1).key(encoder_hash(layer, "bf16 cuda")))
    before, data.processors.train_image.scale = data.processors.train_image.scale, (0.9, 1.0)
    keys.append(Views(data, 2, seed=1).key(encoder))
    data.processors.train_image.scale = before
    before, data.processors.train_image.mean = data.processors.train_image.mean, before_and_a_bit(data)
    keys.append(Views(data, 2, seed=1).key(encoder))
    data.processors.train_image.mean = before
    assert len(set(keys)) == len(keys)
    assert Views(data, 2, seed=1).key(encoder) == keys[0]


def before_and_a_bit(data) -> torch.Tensor:
    return data.processors.train_image.mean + 1e-6


def test_a_part_of_ones_own_that_was_edited_is_another_file(data, tmp_path: Path, monkeypatch) -> None:
    own = tmp_path / "own_features.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "from bita.processors.image import EvalImageProcessor\nclass Own(EvalImageProcessor):\n    gain = {}\n"
    text += "class Encoder(__import__('torch').nn.Identity):\n    pass\n"
    keys = []
    for gain in (1, 2, 1):
        own.write_text(text.format(gain))
        monkeypatch.delitem(sys.modules, "own_features", raising=False)
        made = importlib.import_module("own_features")
        monkeypatch.setattr(data, "processors", replace(data.processors, train_image=made.Own(SIZE)))
        keys.append((Views(data, 1, seed=0).key(""), encoder_hash(made.Encoder(), "")))
    assert keys[0] == keys[2]
    assert keys[0][0] != keys[1][0]
    assert keys[0][1] != keys[1][1]


def test_other_layers_of_the_same_weights_are_other_features(tmp_path: Path) -> None:
    data, weights, names = toy_dataset(tmp_path / "images"), None, set()
    for layers, merge, heads in (
        ([1, 3], "sum", 2),
        ([2, 3], "sum", 2),
        ([1, 3], "concat", 2),
        ([1, 3], "sum", 4),
    ):
        cfg = toy_config(tmp_path, cache_features=1, model__freeze_vit=True, model__vit_depth=3)
        cfg.model.vit_layers, cfg.model.vit_layers_merge = layers, merge
        cfg.model.vit_args["num_heads"] = heads
        model = toy_model(cfg)
        weights = weights or model.visual_encoder.state_dict()
        model.visual_encoder.load_state_dict(weights)
        keep_features(model, [data], [], cfg, torch.device("cpu"))
        names.add(data.features.path)
        tokens = model.raw_tokens(Views(data, 1, cfg.run.seed).of([0], 0)[0][None])
        torch.testing.assert_close(data.features.read([0], 0).float(), tokens, rtol=1e-2, atol=1e-2)
    assert len(names) == 4


def test_a_file_that_was_cut_off_is_made_anew(data, tmp_path: Path) -> None:
    def kept() -> np.ndarray:
        seen = Views(data, 1, seed=0)
        return open_features(seen, brightness, tmp_path / "f.npy", batch_size=4, workers=0).tokens

    whole = kept().copy()
    content = (tmp_path / "f.npy").read_bytes()
    for size in (len(content) - 2, 60, 0):
        (tmp_path / "f.npy").unlink()
        (tmp_path / "f.npy").write_bytes(content[:size])
        assert (kept() == whole).all()


def test_cached_images_that_were_cut_off_are_made_anew(data, tmp_path: Path) -> None:
    def opened():
        return open_cache(data.image_names, data.folder, data.opener, SIZE, tmp_path)

    whole = opened().pixels.copy()
    path = opened().path
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])
    assert (opened().pixels == whole).all()


def test_two_runs_that_want_the_same_file_make_it_once(data, tmp_path: Path) -> None:
    begun, encoded, found = threading.Event(), [], []

    def slowly(images: torch.Tensor) -> torch.Tensor:
        encoded.append(len(images))
        begun.set()
        time.sleep(0.05)
        return brightness(images)

    def one_run() -> None:
        kept = open_features(Views(data, 2, seed=0), slowly, tmp_path / "f.npy", batch_size=2, workers=0)
        found.append(kept.tokens.copy())

    runs = [threading.Thread(target=one_run) for _ in range(2)]
    runs[0].start()
    assert begun.wait(60)
    runs[1].start()
    for run in runs:
        run.join()
    assert sum(encoded) == 1 + 2 * 6  # a look at the shape, two views of six images
    assert (found[0] == found[1]).all()
    assert list(tmp_path.iterdir()) == [tmp_path / "f.npy"]


def test_values_beyond_sixteen_bit_are_refused_and_leave_nothing(data, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="beyond 16 bit"):
        open_features(
            Views(data, 1, 0), lambda x: brightness(x) + 1e5, tmp_path / "f.npy", batch_size=4, workers=0
        )
    assert not list(tmp_path.glob("*.npy"))


def test_a_disk_without_room_is_said_before(data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(UserError, match=r"wants 0.00 GB for 1 views of 6 images"):
        open_features(Views(data, 1, 0), brightness, tmp_path / "f.npy", batch_size=4, workers=0)


class Slow(EvalImageProcessor):
    """Takes longer for an image than torch waits at a time."""

    seconds = 2.0

    def __call__(self, image):
        time.sleep(self.seconds)
        return super().__call__(image)


def test_a_slow_worker_is_waited_for_and_one_that_gives_nothing_is_named(
    data, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(faults, "WORKER_LOOK", 1)
    slow = replace(data.processors, eval_image=Slow(SIZE))
    monkeypatch.setattr(data, "processors", slow)
    monkeypatch.setattr(data, "groups", data.groups[:2])
    open_features(Views(data, None, 0), brightness, tmp_path / "f.npy", batch_size=1, workers=1)
    monkeypatch.setattr(faults, "WORKER_WAIT", 1)
    slow.eval_image.seconds = 5.0
    with pytest.raises(
        UserError, match=r"^DataLoader timed out after 1 seconds, at toy; see whether that file"
    ):
        open_features(Views(data, None, 0), brightness, tmp_path / "g.npy", batch_size=1, workers=1)
    assert list(tmp_path.glob("*.npy")) == [tmp_path / "f.npy"]


def test_training_on_kept_features_learns_what_training_on_images_does(tmp_path: Path) -> None:
    """One view that is no crop: only the rounding to 16 bit is between the two."""
    losses = []
    for number, options in enumerate(({}, {"cache_features": 1})):
        options |= {"name": "run", "model__freeze_vit": True, "max_epoch": 3}
        runner = toy_runner(toy_config(tmp_path / str(number), **options), tmp_path / "images")
        data = runner.datasets["train"][0]
        data.processors = replace(data.processors, train_image=EvalImageProcessor(SIZE))
        runner.train()
        losses.append(runner.watch._losses)
    assert len(losses[0]) > 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_validation_encodes_its_images_once_and_the_test_itself(tmp_path: Path, monkeypatch) -> None:
    """Captions are those of a run that keeps nothing, and the encoder sees each validation image one time."""
    captions, seen = [], []
    for number, options in enumerate(({}, {"cache_features": 1})):
        options |= {"name": "run", "model__freeze_vit": True, "max_epoch": 3}
        options |= {"task": "captioning", "report_metric": False}
        cfg = toy_config(tmp_path / str(number), valid_splits=["val"], test_splits=["val"], **options)
        runner = toy_runner(cfg, tmp_path / "images")
        data = runner.datasets["train"][0]
        data.processors = replace(data.processors, train_image=EvalImageProcessor(SIZE))
        encode, counted = runner.model.raw_tokens, []
        monkeypatch.setattr(
            runner.model, "raw_tokens", lambda x, encode=encode, n=counted: n.append(len(x)) or encode(x)
        )
        runner.train()
        seen.append(sum(counted))
        results = [path.name for path in sorted(runner.run_dir.results.iterdir())]
        assert results == ["val.json", *(f"val_epoch{epoch}.json" for epoch in (1, 2, 3))]
        captions.append([(runner.run_dir.results / name).read_text() for name in results])
    assert captions[0] == captions[1]
    assert seen[0] == 3 * len(data) + 3 * 5 + 5  # each epoch, each validation, the test
    assert seen[1] == (1 + 6) + (1 + 5) + 5  # a look at the shape, then each image once; the test
