"""`bita.load(RUN)`: records, every kind of image alike, similarities, messages."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.windows import Window
from torch.nn import functional as F

import bita
from bita.errors import UserError
from bita.export import stage_1_of
from bita.inference.aligner import Aligner
from bita.inference.captions import Caption
from bita.inference.views import View, seen_ahead
from bita.models.bita_lm import BitaLM
from bita.models.language.consensus import likeness
from bita.processors.rgb import ImageOpener
from tests.inference.conftest import Pair


@pytest.mark.parametrize(
    "settings",
    [{"num_beams": 3, "num_captions": 3}, {"num_beams": 1}, {"num_beams": 3, "min_len": 1, "max_len": 6}],
)
def test_log_probability_is_that_of_reading_the_caption(pair: Pair, settings: dict[str, Any]) -> None:
    """The decoder reads the tokens that the search wrote in one pass and gives them the same probability."""
    model, chosen = pair.captioner.model, {**settings}
    assert isinstance(model, BitaLM)
    generation = replace(pair.captioner.settings, **chosen)
    pixels = torch.stack([pair.captioner.processors.evaluated(path) for path in pair.images])
    with torch.no_grad():
        prefix = model.prefix(pixels)
        for row, captions in zip(prefix, model.search(prefix, generation), strict=True):
            for caption in captions:
                prompt = torch.tensor(model.tokens.prompt(model.cfg.prompt))
                words = model.decoder.embed(torch.cat([prompt, torch.tensor(caption.ids)]))
                inputs = torch.cat([row, words])[None]
                places = torch.arange(len(row) + len(prompt) - 1, inputs.shape[1] - 1)
                logits = model.decoder.logits_at(inputs, torch.zeros_like(places), places)
                said = F.log_softmax(logits.float(), dim=-1).gather(1, torch.tensor(caption.ids)[:, None])
                assert caption.log_probability == pytest.approx(float(said.sum()), abs=1e-4)


def test_records_hold_what_is_known_of_a_caption(pair: Pair) -> None:
    records = pair.captioner.caption(pair.images, num_captions=2)
    assert isinstance(records, list)
    assert len({str(record) for record in records}) > 1
    for path, record in zip(pair.images, records, strict=True):
        assert str(record) == record.caption == record.candidates[0]
        assert len(record.candidates) == 2
        assert record.log_probability < 0
        assert record.tokens >= 4
        assert record.model == pair.captioner.hash
        score = float(pair.captioner.score(path, str(record)))
        assert record.score == pytest.approx(score, abs=1e-5)
        assert -1 <= score <= 1
        assert f"{record.score:.3f}" in record._repr_html_()
    assert repr(pair.captioner) == f"<Captioner {pair.captioner.hash} on cpu>"
    one = pair.captioner.caption(pair.images[0])
    assert isinstance(one, Caption)
    assert str(one) == str(records[0])
    assert one.candidates == [str(one)]


def test_a_caption_by_consensus_is_one_that_the_search_found(pair: Pair) -> None:
    model, settings = pair.captioner.model, replace(pair.captioner.settings, num_beams=6, num_captions=6)
    pixels = torch.stack([pair.captioner.processors.evaluated(path) for path in pair.images])
    with torch.inference_mode():
        found = model.candidates(model.raw_tokens(pixels), settings)
    records = pair.captioner.caption(pair.images, num_beams=6, num_captions=2, choose_by="consensus")
    for captions, record in zip(found, records, strict=True):
        expected = likeness([c.text for c in captions]) @ np.exp([c.log_probability for c in captions])
        best, second, *_ = np.argsort(-expected, kind="stable")
        assert record.candidates == [captions[best].text, captions[second].text]
        assert record.log_probability == pytest.approx(captions[best].log_probability, abs=1e-4)
        assert record.tokens == len(captions[best].ids)
    drawn = {"use_nucleus_sampling": True, "num_captions": 5, "top_p": 0.1}
    every = pair.captioner.caption(pair.images, **drawn)
    records = pair.captioner.caption(pair.images, **drawn, choose_by="consensus")
    for written, record in zip(every, records, strict=True):
        order = np.argsort(-likeness(written.candidates).sum(axis=1), kind="stable")
        assert record.candidates == [written.candidates[place] for place in order]
    assert [str(record) for record in records] != [str(written) for written in every]


def test_a_turned_image_gets_the_same_caption_where_all_views_are_read(pair: Pair) -> None:
    square = Image.open(pair.images[0]).convert("RGB").resize((56, 56))
    turned = square.transpose(Image.Transpose.ROTATE_90).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    one, other, plain = (
        pair.captioner.caption(x, views=v) for x, v in ((square, 8), (turned, 8), (square, 1))
    )
    assert isinstance(one, Caption)
    assert isinstance(other, Caption)
    assert isinstance(plain, Caption)
    assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)
    assert one.log_probability != pytest.approx(plain.log_probability, abs=1e-4)
    assert str(one) == str(other)
    assert one.score == pytest.approx(
        float(pair.captioner.score(square, str(one))), abs=1e-5
    )  # of the image as it is


def test_views_are_encoded_a_batch_at_a_time(pair: Pair) -> None:
    """So that eight of them need the memory of one."""
    seen: list[int] = []
    watch = pair.captioner.model.visual_encoder.register_forward_pre_hook(
        lambda _, inputs: seen.append(len(inputs[0]))
    )
    pair.captioner.caption(pair.images, batch_size=3, views=8, score=False)
    watch.remove()
    assert seen == [3] * 8 + [2] * 8


def test_embeddings_are_those_of_the_stage_1_run(pair: Pair) -> None:
    stage1 = Aligner(pair.stage1, "cpu")
    pixels = torch.stack([stage1.processors.evaluated(path) for path in pair.images])
    images, texts = pair.captioner.embed_images(pair.images, batch_size=2), ["a field", "two planes"]
    queries, width = stage1.model.cfg.num_query_token, stage1.model.cfg.embed_dim
    assert images.shape == (5, queries, width)
    assert torch.allclose(images, stage1.embed_pixels(pixels), atol=1e-6)
    assert torch.allclose(images.norm(dim=-1), torch.ones(5, queries), atol=1e-5)
    words = pair.captioner.embed_texts(texts)
    assert torch.equal(words, stage1.embed_texts(texts))
    best = torch.einsum("nqe,me->nmq", images, words).amax(dim=2)
    assert torch.allclose(pair.captioner.score(pair.images, texts), best, atol=1e-6)
    own = pair.captioner.stage1
    assert own is not None
    assert own.model.visual_encoder is pair.captioner.model.visual_encoder  # equal frozen encoders are one


def test_an_encoder_of_equal_weights_that_gives_other_layers_is_not_shared(pair: Pair) -> None:
    stage1 = Aligner(pair.stage1, "cpu")
    stage1.model.cfg.vit_layers = [1]
    assert not stage1.share_encoder(pair.captioner.model)
    stage1.model.cfg.vit_layers = pair.captioner.model.cfg.vit_layers
    assert stage1.share_encoder(pair.captioner.model)


def test_a_moved_pair_of_runs_and_an_export_find_their_stage_1(pair: Pair, tmp_path: Path) -> None:
    best = stage_1_of(pair.run)
    assert best is not None
    assert best.is_relative_to(pair.stage1)
    for name in ("stage1", "caption"):
        shutil.copytree(pair.run.parents[1] / name, tmp_path / name)
    moved = stage_1_of(tmp_path / "caption/run")
    assert moved is not None
    assert moved.is_relative_to(tmp_path)
    shutil.rmtree(tmp_path / "stage1")
    assert pair.captioner.stage1 is not None
    pair.captioner.stage1.model.keep_tokenizer(tmp_path)  # as a run does, so that it can be moved
    assert (tmp_path / "text_tokenizer/tokenizer_config.json").is_file()
    assert stage_1_of(pair.stage1) is None


def test_every_kind_of_image_gives_the_same_pixels(tmp_path: Path) -> None:
    """A file, and what a program holds of it, by the rules of files."""
    deep = np.random.default_rng(0).integers(0, 4000, (40, 48, 5)).astype(np.uint16)
    deep[:10, :10] = 0
    profile = {"driver": "GTiff", "height": 40, "width": 48, "count": 5, "dtype": "uint16", "nodata": 0}
    with rasterio.open(tmp_path / "deep.tif", "w", **profile) as file:
        file.write(np.moveaxis(deep, -1, 0))
    flat = np.random.default_rng(1).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    Image.fromarray(flat).save(tmp_path / "flat.png")
    with rasterio.open(tmp_path / "deep.tif") as raster, rasterio.open(tmp_path / "flat.png") as shown:
        cut = np.moveaxis(shown.read(), 0, -1)[8:24, 4:36]
        assert pixels(tmp_path / "flat.png") == pixels(flat) == pixels(Image.fromarray(flat))
        assert pixels(flat) == pixels(torch.from_numpy(flat).permute(2, 0, 1)) == pixels(shown)
        assert pixels(flat) == pixels((tmp_path / "flat.png").read_bytes())
        with (tmp_path / "flat.png").open("rb") as opened:
            assert pixels(flat) == pixels(opened)  # and not as many images as it has lines
        assert pixels((shown, Window(4, 8, 32, 16))) == pixels(cut) == pixels((shown, ((8, 24), (4, 36))))
        assert pixels(flat[:, :, 0]) == pixels(np.repeat(flat[:, :, :1], 3, axis=2))
        assert pixels(flat > 127) == pixels((flat > 127).astype(np.uint8) * 255)
        assert pixels(tmp_path / "deep.tif", bands=(5, 3, 1)) == pixels(raster, bands=(5, 3, 1))
        assert pixels(raster) != pixels(deep)  # an array knows nothing of nodata
        without = np.where(deep > 0, deep, np.nan).astype(np.float32)
        assert pixels(raster) == pixels(without) == pixels(torch.from_numpy(without).permute(2, 0, 1))


def pixels(image: Any, bands: tuple[int, ...] | None = None) -> list[Any]:
    class Plain:
        eval_open, eval_image = (
            ImageOpener(bands=bands),
            staticmethod(lambda rgb: torch.from_numpy(np.array(rgb))),
        )

    (seen,) = seen_ahead([image], [View(Plain())], 1, torch.device("cpu"))  # type: ignore[arg-type]
    assert not isinstance(seen, UserError), seen
    return seen[0].tolist()


@pytest.mark.parametrize("cores", [1, 64])
def test_what_is_opened_ahead_stays_in_order_and_bounded(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    """Between the batches of a model that has all cores, and beside those of one that has not."""
    monkeypatch.setattr("bita.inference.views.cores", lambda: cores)
    taken: list[int] = []

    def images() -> Any:
        for number in range(40):
            taken.append(number)
            yield np.full((8, 8, 3), number, np.uint8)

    stream = pair.captioner.stream(images(), batch_size=2, num_beams=1, max_len=3, min_len=1)
    next(stream)
    assert len(taken) <= 2 + 2 * 2 + 1
    assert len([*stream]) == 39
    assert taken == list(range(40))


WRONG: list[tuple[Any, str]] = [
    (5, "images: wanted a path, a PIL image"),
    (None, "images: wanted a path, a PIL image, .* not None"),
    ([5], r"images\[0\]: wanted a path, .*, not int"),
    ([None], r"images\[0\]: wanted a path, .*, not None"),
    ([np.zeros(7)], r"images\[0\]: array of shape \(7,\); wanted \(H, W\)"),
    ([np.zeros((2, 3, 4, 5))], r"images\[0\]: array of shape \(2, 3, 4, 5\)"),
    ([np.zeros((0, 5, 3))], r"images\[0\]: image does not open \(it is 5 × 0 pixels large\)"),
    (np.zeros((5, 5, 0)), r"images\[0\]: array of shape \(5, 5, 0\); wanted one band at least"),
    (np.zeros((3, 32, 32)), r"images\[0\]: array of shape \(3, 32, 32\); wanted \(H, W, C\)"),
    (torch.zeros(32, 32, 3), r"images\[0\]: tensor of shape \(32, 32, 3\); wanted \(C, H, W\)"),
    (torch.zeros(5), r"images\[0\]: tensor of shape \(5,\); wanted \(C, H, W\)"),
    (np.zeros((4, 4, 3), complex), r"images\[0\]: array of complex128; wanted whole or real numbers"),
    (b"", r"images\[0\]: image does not open \(the file is empty\)"),
    (b"hello", r"images\[0\]: image does not open \(its content is none of TIFF"),
    ("", "image does not open"),
    ("no.png", "no.png: image is missing"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_what_is_no_image_is_one_line(pair: Pair, given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as said:
        pair.captioner.caption(given)
    assert "\n" not in str(said.value)


def test_settings_are_checked(pair: Pair) -> None:
    with pytest.raises(UserError, match="it is a folder; give its images"):
        pair.captioner.caption(pair.images[0].parent)
    with pytest.raises(UserError, match=r"^views \(generation\): must be at most 8, not 9"):
        pair.captioner.caption(pair.images[0], views=9)
    with pytest.raises(
        UserError, match=r"^choose_by .*: unknown value 'best'; did you mean .*, of consensus, likelihood"
    ):
        pair.captioner.caption(pair.images[0], choose_by="best")
    with pytest.raises(UserError, match="num_beam: unknown setting; did you mean 'num_beams'"):
        pair.captioner.caption(pair.images, num_beam=2)
    with pytest.raises(UserError, match="batch_size: must be at least 1"):
        pair.captioner.caption(pair.images, batch_size=0)


def test_without_stage_1_there_are_no_similarities(pair: Pair, tmp_path: Path) -> None:
    shutil.copytree(pair.run, tmp_path / "caption/run")
    meta = next((tmp_path / "caption/run/checkpoints").glob("*/meta.json"))
    meta.write_text(meta.read_text().replace(str(pair.stage1), str(tmp_path / "gone")))
    captioner = bita.load(tmp_path / "caption/run", "cpu")
    record = captioner.caption(pair.images[0])
    assert record.score is None
    with pytest.raises(
        UserError, match=r"stage 1, .* is not there; give bita.load\(…, stage1=RUN\) a run .*quickstart"
    ):
        captioner.embed_texts("a field")
    given = bita.load(tmp_path / "caption/run", "cpu", stage1=pair.stage1)
    assert given.caption(pair.images[0]).score == pair.captioner.caption(pair.images[0]).score
    given = bita.load(
        tmp_path / "caption/run", "cpu", stage1=pair.run
    )  # a run that grew from one names it too
    assert given.caption(pair.images[0]).score == pair.captioner.caption(pair.images[0]).score
