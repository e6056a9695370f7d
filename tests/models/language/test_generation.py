"""The beam search by its rules, against a search that looks at everything; sampling; settings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from bita.errors import ConfigError
from bita.models.language.generation import GenerationSettings, generate
from tests.models.language.plain_search import plain_beam_search

STOP = 3


class TableDecoder:
    """A language model whose next logits depend on the last token: by one table, or by one an image."""

    def __init__(self, logits: Tensor, images: int = 1) -> None:
        self.logits = logits if logits.ndim == 3 else logits.expand(images, -1, -1)

    def start(self) -> Tensor:
        return self.logits[:, 0]

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        return self.logits.gather(1, tokens[..., None].expand(-1, -1, self.logits.shape[2]))

    def keep(self, images: Tensor) -> None:
        self.logits = self.logits[images]


def table(seed: int, vocabulary: int = 6) -> Tensor:
    return torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def log_prob(logits: Tensor, tokens: list[int]) -> float:
    total, last = 0.0, 0
    for token in tokens:
        total += logits[last].log_softmax(-1)[token].item()
        last = token
    return total


@pytest.mark.parametrize("seed", range(5))
def test_wide_beam_finds_the_best_of_all_sequences(seed: int) -> None:
    """With as many beams as sequences, the search must find what trying everything finds."""
    logits, new = table(seed, vocabulary=5), 3
    settings = GenerationSettings(num_beams=200, max_len=new + 1, min_len=1)
    everything = {}
    for length in range(1, new + 1):
        for body in itertools.product([t for t in range(5) if t != STOP], repeat=length - 1):
            everything[(*body, STOP)] = log_prob(logits, [*body, STOP]) / length
    for body in itertools.product([t for t in range(5) if t != STOP], repeat=new):
        everything[body] = log_prob(logits, list(body)) / (new + 1)
    best = max(everything, key=lambda tokens: everything[tokens])

    class Padded(TableDecoder):  # enough continuations for 2·beams candidates
        def start(self) -> Tensor:
            return self._pad(super().start())

        def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
            return self._pad(super().step(tokens.clamp(max=4), parents))

        def _pad(self, logits: Tensor) -> Tensor:
            return torch.cat([logits, torch.full((*logits.shape[:-1], 400), -1e4)], dim=-1)

    assert generate(Padded(logits), 1, STOP, settings)[0][0] == list(best)


def test_no_stop_before_min_len_and_none_after_max_len() -> None:
    logits = table(0)
    logits[:, STOP] = 50.0
    for beams in (1, 4):
        settings = GenerationSettings(num_beams=beams, max_len=9, min_len=5)
        (tokens,) = generate(TableDecoder(logits), 1, STOP, settings)[0]
        assert tokens.index(STOP) == len(tokens) - 1 == 4
    logits[:, STOP] = -50.0
    for beams in (1, 4):
        (tokens,) = generate(TableDecoder(logits), 1, STOP, GenerationSettings(num_beams=beams, max_len=9))[0]
        assert len(tokens) == 8


@pytest.mark.parametrize("seed", range(6))
def test_the_search_on_the_device_is_the_plain_one(seed: int) -> None:
    """Images that stop at different times, or never; several penalties; beams that tie."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, 23, 23, generator=generator) * 2
    logits[:, :, STOP] += torch.linspace(-2, 5, 40)[:, None]
    logits[::5] = logits[::5].round()
    for beams, length_penalty, repetition_penalty, min_len in itertools.product(
        (2, 5), (1.0, 0.3), (1.0, 1.4), (1, 5)
    ):
        settings = GenerationSettings(
            num_beams=beams,
            num_captions=beams,
            max_len=12,
            min_len=min_len,
            length_penalty=length_penalty,
            repetition_penalty=repetition_penalty,
        )
        found = generate(TableDecoder(logits), 40, STOP, settings)
        assert found == plain_beam_search(TableDecoder(logits), 40, STOP, settings)
        lengths = {len(captions[0]) for captions in found}
        assert len(lengths) > 1


def test_num_captions_come_best_first_and_differ() -> None:
    logits = table(1)
    captions = generate(
        TableDecoder(logits), 1, STOP, GenerationSettings(num_captions=4, max_len=8, min_len=1)
    )[0]
    scores = [log_prob(logits, c) / (len(c) + (c[-1] != STOP)) for c in captions]
    assert scores == sorted(scores, reverse=True)
    assert len({tuple(c) for c in captions}) == 4


def test_images_do_not_influence_each_other() -> None:
    """An image that is done leaves the batch; the others go on as if alone."""
    logits = table(2)
    settings = GenerationSettings(max_len=12, min_len=1)
    assert (
        generate(TableDecoder(logits, 3), 3, STOP, settings)
        == generate(TableDecoder(logits), 1, STOP, settings) * 3
    )


def test_sampling_keeps_to_the_nucleus_and_repeats_with_its_seed() -> None:
    logits = table(3)
    settings = GenerationSettings(
        use_nucleus_sampling=True, top_p=0.5, num_captions=20, max_len=10, min_len=1
    )
    draws = [
        generate(TableDecoder(logits), 1, STOP, settings, [torch.Generator().manual_seed(7)])[0]
        for _ in range(2)
    ]
    assert draws[0] == draws[1]
    assert len({tuple(c) for c in draws[0]}) > 1
    last = 0
    for token in draws[0][0]:
        probs = logits[last].softmax(-1)
        better = probs[probs > probs[token]].sum()
        assert better < 0.5
        last = token


def test_repetition_penalty_breaks_a_loop() -> None:
    logits = torch.full((6, 6), 1.0)
    logits[:, 2] = 3.0
    settings = GenerationSettings(num_beams=1, max_len=7)
    assert generate(TableDecoder(logits), 1, STOP, settings)[0][0] == [2] * 6
    penal = GenerationSettings(num_beams=1, max_len=7, repetition_penalty=100.0)
    assert len(set(generate(TableDecoder(logits), 1, STOP, penal)[0][0])) > 2


class Noise:
    """A language model that says anything: the logits of every step are random."""

    def __init__(self, rows: int, steps: int, vocabulary: int = 30) -> None:
        self.logits = torch.randn(steps, rows, vocabulary, generator=torch.Generator().manual_seed(0)) * 3
        self.steps = 0

    def start(self) -> Tensor:
        return self.logits[0]

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        self.steps += 1
        return self.logits[self.steps][:, None].expand(-1, tokens.shape[1], -1)

    def keep(self, images: Tensor) -> None:
        self.logits = self.logits[:, images]


@pytest.mark.parametrize("penalty", [1.2, 2.5, 0.7])
def test_repetition_penalty_of_greedy_choice_is_that_of_transformers(penalty: float) -> None:
    rows, new = 400, 8
    settings = GenerationSettings(num_beams=1, max_len=new + 1, min_len=new + 1, repetition_penalty=penalty)
    decoder, said = Noise(rows, new), torch.zeros(rows, 0, dtype=torch.long)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)
    for logits in decoder.logits:
        scores = theirs(said, logits.clone()) if said.shape[1] else logits.clone()
        scores[:, STOP] = -torch.inf
        said = torch.cat([said, scores.argmax(dim=1, keepdim=True)], dim=1)
    found = [captions[0] for captions in generate(decoder, rows, STOP, settings)]
    assert found == said.tolist()


@pytest.mark.parametrize(("top_p", "temperature"), [(0.9, 1.0), (0.5, 1.7), (1.0, 0.6)])
def test_a_drawn_token_is_as_likely_as_in_transformers(top_p: float, temperature: float) -> None:
    """The last of two steps, where a token has been said, on a few rows of random logits, many times each."""
    rows, times, penalty = 5, 4000, 1.3
    settings = GenerationSettings(
        use_nucleus_sampling=True,
        num_captions=times,
        top_p=top_p,
        temperature=temperature,
        repetition_penalty=penalty,
        max_len=3,
        min_len=1,
    )
    said = torch.tensor([4, 5, 6, 7, 8])
    decoder = Noise(rows, 2)
    decoder.logits[0].fill_(-100.0)[torch.arange(rows), said] = 100.0
    scores = RepetitionPenaltyLogitsProcessor(penalty)(said[:, None], decoder.logits[1].clone())
    scores = TemperatureLogitsWarper(temperature)(said[:, None], scores)
    expected = TopPLogitsWarper(top_p)(said[:, None], scores).softmax(dim=1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(rows)]
    drawn = torch.tensor(generate(decoder, rows, STOP, settings, generators))
    assert torch.equal(drawn[..., 0], said[:, None].expand(-1, times))
    found = torch.nn.functional.one_hot(drawn[..., 1], 30).float().mean(dim=1)
    assert (found[expected == 0] == 0).all()
    assert (found - expected).abs().max() < 0.03  # about four times what chance gives


def test_what_is_drawn_for_an_image_depends_on_its_own_generator_alone() -> None:
    settings = GenerationSettings(use_nucleus_sampling=True, num_captions=3, max_len=10, min_len=1)

    def draw(*seeds: int) -> list[list[list[int]]]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return generate(TableDecoder(table(3), len(seeds)), len(seeds), STOP, settings, generators)

    one, two, three = draw(1, 2, 3)
    assert draw(3, 1) == [three, one]
    assert draw(2) == [two]
    assert one != two


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_captions=6"):
        GenerationSettings(num_captions=6)
    with pytest.raises(ConfigError, match=r"num_captions \(generation\): must be at least 1, not 0"):
        GenerationSettings(num_captions=0)
    with pytest.raises(ConfigError, match="max_len"):
        GenerationSettings(max_len=1)
    for name, value in (
        ("temperature", 0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("repetition_penalty", 0),
        ("num_beams", "3"),
    ):
        with pytest.raises(ConfigError, match=rf"^{name} \(generation\): "):
            GenerationSettings(use_nucleus_sampling=True, **{name: value})  # type: ignore[arg-type]
    assert GenerationSettings(num_beams=np.int64(3), temperature=np.float32(0.5)).width == 3  # type: ignore[arg-type]
