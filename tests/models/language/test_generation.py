"""The beam search by its rules, against a search that looks at everything; sampling; settings."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from bita.errors import ConfigError
from bita.models.language.generation import GenerationSettings, generate

STOP = 3


class TableDecoder:
    """A language model whose next-token logits depend on the last token alone."""

    def __init__(self, logits: Tensor, images: int = 1) -> None:
        self.logits, self.images = logits, images
        self.rows_read = 0

    def start(self, rows_per_image: int) -> Tensor:
        return self.logits[0].expand(self.images * rows_per_image, -1).clone()

    def step(self, tokens: Tensor, rows: Tensor) -> Tensor:
        self.rows_read += len(rows)
        return self.logits[tokens].clone()


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
        def start(self, rows_per_image: int) -> Tensor:
            return self._pad(super().start(rows_per_image))

        def step(self, tokens: Tensor, rows: Tensor) -> Tensor:
            return self._pad(super().step(tokens.clamp(max=4), rows))

        def _pad(self, logits: Tensor) -> Tensor:
            return torch.cat([logits, torch.full((len(logits), 400), -1e4)], dim=1)

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
        generate(TableDecoder(logits), 1, STOP, settings, torch.Generator().manual_seed(7))[0]
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
    logits = torch.full((6, 6), 0.0)
    logits[:, 2] = 3.0
    settings = GenerationSettings(num_beams=1, max_len=7)
    assert generate(TableDecoder(logits), 1, STOP, settings)[0][0] == [2] * 6
    penal = GenerationSettings(num_beams=1, max_len=7, repetition_penalty=100.0)
    assert len(set(generate(TableDecoder(logits), 1, STOP, penal)[0][0])) > 2


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_captions=6"):
        GenerationSettings(num_captions=6)
    with pytest.raises(ConfigError, match="max_len"):
        GenerationSettings(max_len=1)
