"""Where a model looked: weights as computed by hand, gradients as finite differences, maps where they should lie."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn

from bita.errors import UserError
from bita.inference.attention import Look, cross_attention, look, relevance, tokens_of, words_of
from bita.inference.captions import Caption
from bita.inference.pictures import overlay, sheet
from bita.models.bita_lm import BitaLM
from bita.models.bridge import Attention, Bridge
from bita.models.language.generation import GenerationSettings
from tests.inference.conftest import Pair
from tests.weights.test_weights import stage_1, stage_2

SETTINGS = GenerationSettings(num_beams=2, max_len=8, min_len=3)


def randomise(module: nn.Module, seed: int) -> None:
    """Weights so large that attention is not the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def built(**changes: object) -> BitaLM:
    torch.manual_seed(0)
    model = stage_2(**changes).eval().float()
    randomise(model.bridge, 1)
    randomise(model.opt_proj, 2)
    return model


@pytest.fixture(scope="module")
def model() -> BitaLM:
    return built()


def pixels(side: int = 56) -> Tensor:
    return torch.randn(3, side, side, generator=torch.Generator().manual_seed(3))


def picture(width: int = 60, height: int = 40) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def looked(model: BitaLM, **changes: Any) -> Look:
    return look(model, picture(), pixels(), SETTINGS, **{"occlusion": 0} | changes)


@pytest.mark.parametrize("bridge", ["ift", "qformer"])
def test_weights_equal_those_computed_by_hand_and_explain_the_output(bridge: str) -> None:
    model = built(bridge=bridge)
    with torch.no_grad(), cross_attention(model.bridge) as reads:
        out: dict[int, Tensor] = {}
        hooks = [
            module.register_forward_hook(lambda m, _, given: out.__setitem__(id(m), given))
            for module in model.bridge.modules()
            if isinstance(module, Attention)
        ]
        model.prefix(pixels()[None])
        for hook in hooks:
            hook.remove()
    assert len(reads) == (2 if bridge == "ift" else 1)
    for read in reads:
        weights = read.weights()
        assert weights.shape == (2, 4, 17)
        assert torch.allclose(weights.sum(dim=-1), torch.ones(2, 4), atol=1e-6)
        own = read.module
        query = (read.hidden[0] @ own.query.weight.T + own.query.bias).detach().numpy().astype(np.float64)
        key = (read.image[0] @ own.key.weight.T + own.key.bias).detach().numpy().astype(np.float64)
        value = (read.image[0] @ own.value.weight.T + own.value.bias).detach().numpy().astype(np.float64)
        rows = []
        for head in range(2):
            part = slice(12 * head, 12 * (head + 1))
            scores = np.exp(query[:, part] @ key[:, part].T / np.sqrt(12))
            by_hand = scores / scores.sum(axis=1, keepdims=True)
            assert np.allclose(weights[head], by_hand, atol=1e-5)
            rows.append(by_hand @ value[:, part])
        merged = torch.tensor(np.concatenate(rows, axis=1), dtype=torch.float32)
        assert torch.allclose(merged, read.merged[0], atol=1e-4)
        assert torch.allclose(out[id(own)][0], own.norm(own.output(merged) + read.hidden[0]), atol=1e-4)


def test_the_forward_pass_is_the_ordinary_one(model: BitaLM) -> None:
    plain = model.prefix(pixels()[None])
    with cross_attention(model.bridge):
        assert torch.equal(model.prefix(pixels()[None]), plain)
    assert not any(module._forward_pre_hooks for module in model.bridge.modules())
    state = copy.deepcopy(model.state_dict())
    looked(model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@contextmanager
def nudged(module: Attention, change: Tensor) -> Iterator[None]:
    """A layer whose attention weights (A, Q, N) have something added."""

    def explicit(own: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        weights = module.weights(*inputs[:2]).to(change.dtype) + change
        merged = (weights @ module.values(inputs[1])).transpose(1, 2).flatten(2)
        return module.norm(module.output(merged) + inputs[0])

    handle = module.register_forward_hook(explicit)
    yield
    handle.remove()


def score_of(model: BitaLM, image: Tensor, ids: Tensor) -> Tensor:
    logits, targets, _ = model.predicted(model.prefix_of(image), ids, ids)
    return logits.log_softmax(dim=-1).gather(1, targets[:, None]).sum()


@pytest.mark.parametrize("bridge", ["ift", "qformer"])
def test_gradients_agree_with_finite_differences(bridge: str) -> None:
    model = built(bridge=bridge)
    ids = torch.tensor([[2, 40, 17, 90]])
    image = model.raw_tokens(pixels()[None]).detach().requires_grad_()
    with cross_attention(model.bridge) as reads:
        score = score_of(model, image, ids)
    gradients = torch.autograd.grad(score, [read.merged for read in reads], retain_graph=True)
    generator = torch.Generator().manual_seed(5)
    for read, of_merged in zip(reads, gradients, strict=True):
        direction = torch.randn(read.weights().shape, generator=generator)
        ends = []
        for step in (1e-4, -1e-4):
            with torch.no_grad(), nudged(read.module, step * direction):
                ends.append(float(score_of(model, image, ids)))
        slope = (ends[0] - ends[1]) / 2e-4
        assert float((read.gradient(of_merged) * direction).sum()) == pytest.approx(slope, rel=0.02)
        assert abs(slope) > 0.01
    product = [
        (read.gradient(g) * read.weights()).clamp(min=0) for read, g in zip(reads, gradients, strict=True)
    ]
    expected = sum(p.mean(dim=0).sum(dim=0) for p in product)
    assert isinstance(expected, Tensor)
    assert torch.allclose(relevance(score, reads), expected)


def test_words_and_what_they_cost(model: BitaLM) -> None:
    found = looked(model, caption="there are two planes")
    assert [word.word for word in found.words] == ["there", "are", "two", "planes"]
    ids = tokens_of(model, found.caption)
    start = model.tokens.prompt("")
    row = torch.tensor([start + ids])
    labels = torch.tensor([[-100] * len(start) + ids])
    loss = model.caption_loss(model.prefix(pixels()[None]), row, labels)
    assert sum(word.log_probability for word in found.words) == pytest.approx(
        -loss.item() * len(ids), rel=1e-4
    )
    own = looked(model)
    written = model.generate_ids(pixels()[None], SETTINGS)[0]
    assert own.caption == model.decode(written)[0]
    assert [word.word for word in own.words] == own.caption.split()
    with pytest.raises(UserError, match="no words"):
        looked(model, caption=" ")


def test_a_prompt_is_read_and_has_no_map() -> None:
    model = built(prompt="a photo of")
    found = looked(model, caption="there are")
    assert [word.word for word in found.words] == ["there", "are"]
    texts = model.tokens.batch(["a photo of there are"], "a photo of", 32)[0][0].tolist()
    prompt = model.tokens.prompt("a photo of")
    assert texts == [*prompt, *tokens_of(model, "there are"), model.tokens.stop]
    assert [word for word, _ in words_of(model, tokens_of(model, "there are"))] == ["there", "are"]


def test_occlusion_is_the_fall_of_a_words_log_probability(model: BitaLM) -> None:
    found = looked(model, caption="two planes", occlusion=3, batch_size=4)
    image = pixels()
    covered = image.clone()
    covered[:, 37:56, 0:19] = image.mean(dim=(1, 2))[:, None, None]
    again = look(model, picture(), covered, SETTINGS, caption="two planes", occlusion=0)
    for word, other in zip(found.words, again.words, strict=True):
        assert word.occlusion is not None
        assert word.occlusion.shape == (3, 3)
        fall = word.log_probability - other.log_probability
        assert float(word.occlusion[2, 0]) == pytest.approx(fall, abs=1e-5)
    assert len({round(float(v), 5) for word in found.words for v in word.occlusion.flatten()}) > 9  # type: ignore[union-attr]


ENCODERS = {
    "class token": ({}, (4, 4), 1),
    "several layers": ({"vit_layers": [1, 2]}, (4, 4), 1),
    "patches that are not square": (
        {"vit_args": {"embed_dim": 32, "num_heads": 4, "patch_size": (14, 28)}},
        (4, 2),
        1,
    ),
    "no class token, registers": (
        {
            "vit_model": "timm:vit_base_patch16_224",
            "vit_depth": 1,
            "image_size": 64,
            "vit_args": {
                "embed_dim": 32,
                "num_heads": 2,
                "class_token": False,
                "global_pool": "avg",
                "reg_tokens": 4,
            },
        },
        (4, 4),
        4,
    ),
    "feature map": (
        {
            "vit_model": "timm:resnet10t",
            "vit_depth": None,
            "image_size": 64,
            "vit_args": {"channels": (8, 8, 8, 16), "stem_width": 8, "output_stride": 16},
        },
        (4, 4),
        0,
    ),
    "channels last": (
        {
            "vit_model": "timm:swin_tiny_patch4_window7_224",
            "vit_depth": None,
            "image_size": 64,
            "vit_args": {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4},
        },
        (8, 8),
        0,
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_maps_have_the_grid_of_the_encoder_and_point_at_what_differs(name: str) -> None:
    """One place of an otherwise even image is what all attention of one head can tell from the rest."""
    changes, grid, before = ENCODERS[name]
    model = built(**changes)
    side = int(changes.get("image_size", 56))  # type: ignore[call-overload]
    found = look(model, picture(), pixels(side), SETTINGS, caption="two", occlusion=0)
    assert found.attention.shape == found.words[0].gradient.shape == grid
    assert found.attention.sum() + found.elsewhere == pytest.approx(1, abs=1e-5)
    assert (found.elsewhere > 1e-3) == (before > 0)
    tokens = model.raw_tokens(pixels(side)[None])
    assert tokens.shape[1] == before + grid[0] * grid[1]
    changed = pixels(side)
    rows, columns = side // grid[0], side // grid[1]
    changed[:, 2 * rows : 3 * rows, columns : 2 * columns] += 3  # row 2, column 1
    moved = (model.raw_tokens(changed[None]) - tokens)[0, before:].norm(dim=-1)
    if name in ("class token", "several layers", "patches that are not square"):  # blocks mix, but a little
        assert int(moved.argmax()) == 2 * grid[1] + 1


def test_a_bridge_without_cross_attention_is_refused() -> None:
    class Plain(Bridge):
        pass

    plain = Plain.__new__(Plain)
    nn.Module.__init__(plain)
    with (
        pytest.raises(UserError, match="Plain: this bridge has no cross-attention"),
        cross_attention(plain),
    ):
        pass


def test_maps_depend_on_the_weights(model: BitaLM) -> None:
    """Adebayo et al. 2018, "Sanity checks for saliency maps": random weights, layer by layer, change the map."""
    plain = looked(model, caption="two planes", occlusion=4)
    again = looked(model, caption="two planes", occlusion=4)
    maps = {"attention": lambda x: x.attention}
    maps["gradient"] = lambda x: np.stack([word.gradient for word in x.words])
    maps["occlusion"] = lambda x: np.stack([word.occlusion for word in x.words])
    for name, of in maps.items():
        assert np.array_equal(of(plain), of(again)), name
    agreement: dict[str, list[float]] = {name: [] for name in maps}
    for seed in range(4):
        other = copy.deepcopy(model)
        for parameter in other.bridge.parameters():
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(seed))
        changed = looked(other, caption="two planes", occlusion=4)
        for name, of in maps.items():
            agreement[name].append(abs(spearmanr(of(plain).ravel(), of(changed).ravel()).statistic))
    assert {name: float(np.mean(values)) < 0.6 for name, values in agreement.items()} == dict.fromkeys(
        maps, True
    ), agreement
    decoder = copy.deepcopy(model)
    randomise(decoder.opt_proj, 9)
    changed = looked(decoder, caption="two planes", occlusion=4)
    assert np.array_equal(changed.attention, plain.attention)  # which the words have no part in
    for name in ("gradient", "occlusion"):
        assert abs(spearmanr(maps[name](plain).ravel(), maps[name](changed).ravel()).statistic) < 0.95


def test_an_overlay_is_the_image_where_the_map_is_zero_and_hot_where_it_is_highest() -> None:
    image = Image.new("RGB", (200, 100), (0, 128, 0))
    values = np.zeros((2, 4), np.float32)
    values[1, 3] = 2.0
    shown = np.asarray(overlay(image, values))
    assert shown.shape == (100, 200, 3)
    assert (shown[:50, :100] == (0, 128, 0)).all()
    assert tuple(shown[99, 199]) == (
        189,
        223,
        123,
    )  # a quarter of the image, three quarters of the hottest colour
    assert tuple(np.asarray(overlay(image, values, 4.0))[99, 199]) != (189, 223, 123)
    assert np.array_equal(np.asarray(overlay(image, -values)), np.asarray(image))


def test_overlays_by_word_and_the_sheet(model: BitaLM) -> None:
    found = looked(model, caption="two red planes", occlusion=2)
    for method in ("gradient", "occlusion"):
        assert found.overlay("red", method).size == (60, 40)
        assert found.overlay("red", method).tobytes() == found.overlay(1, method).tobytes()
        assert found.sheet(method).width == 4 * 192 + 8
    assert found.overlay().tobytes() == overlay(found.image, found.attention).tobytes()
    for word, method, says in (
        ("blue", "gradient", "'blue': is not in the caption 'two red planes'"),
        ("red", "magic", "choose one of gradient, occlusion"),
    ):
        with pytest.raises(UserError, match=says):
            found.overlay(word, method)
    with pytest.raises(UserError, match="look with occlusion=8"):
        looked(model, caption="two").overlay("two", "occlusion")


def test_a_sheet_cuts_long_texts_and_fits_any_image() -> None:
    cells = [(picture(2000, 10), "word " * 100), (picture(3, 300), ""), (picture(), "b" * 500)]
    found = sheet(cells, columns=2)
    assert found.size == (2 * 192 + 8, 2 * (144 + 41 + 8) + 8)
    assert sheet(cells[:1], columns=5).width == 192 + 8


def test_a_captioner_looks_at_any_kind_of_image_for_any_caption(pair: Pair) -> None:
    own = pair.captioner.look(pair.images[0], occlusion=2, num_beams=2)
    record = pair.captioner.caption(pair.images[0], num_beams=2)
    assert isinstance(record, Caption)
    assert own.caption == record.caption
    assert own.image.size == (40, 36)
    with Image.open(pair.images[0]) as image:
        again = pair.captioner.look(np.asarray(image), caption=record, occlusion=0)
    assert np.allclose(again.attention, own.attention, atol=1e-6)
    large = pair.captioner.look(picture(3000, 1500), caption="two", occlusion=0)
    assert large.overlay().size == (1024, 512)
    for given, changes, says in (
        (pair.images[0].with_name("no.png"), {}, "no.png: image is missing"),
        (pair.images[0], {"occlusion": -1}, "occlusion: must be at least 0"),
        (pair.images[0], {"beams": 3}, "beams: unknown setting"),
    ):
        with pytest.raises(UserError, match=says):
            pair.captioner.look(given, **changes)


def test_stage_1_reads_the_same_way() -> None:
    model = stage_1().eval()
    with torch.no_grad(), cross_attention(model.bridge) as reads:
        model.image_features(pixels()[None])
    assert len(reads) == 2


def test_names_on_a_sheet_keep_their_letters() -> None:
    """A letter that the font lacks would be the same box as any other."""
    image = Image.new("RGB", (8, 8))
    shown = [sheet([(image, letter)], columns=1).tobytes() for letter in "eéèüßñøłΩжЖ"]
    assert len(set(shown)) == len(shown)
