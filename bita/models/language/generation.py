"""From a prefix to token ids: the published beam search, greedy choice, and sampling.

The beam search follows the recorded behaviour of the system's release, which differs from today's libraries where
hypotheses are cut at the maximum length. Its rules, with n the number of new tokens, the stop included:

- each step looks at the 2·beams best continuations of an image; a stop among the first `beams` of them ends a
  hypothesis with score Σ log p / n^length_penalty; the best `beams` others go on;
- an image is done when it holds `beams` hypotheses and the worst is no worse than the best continuation's
  Σ log p / (tokens so far + 2)^length_penalty;
- beams alive at the maximum are hypotheses with score Σ log p / (n + 1)^length_penalty.

A repetition penalty is applied after the log-softmax for beams, as recorded, and to the logits for greedy choice and
sampling, as in transformers.

Shapes: B images, K beams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from bita.config.schema import RunConfig
from bita.errors import ConfigError


@dataclass(frozen=True)
class GenerationSettings:
    """How captions are searched for; `max_len` and `min_len` count a start placeholder, as published."""

    num_beams: int = RunConfig.num_beams
    max_len: int = RunConfig.max_len
    min_len: int = RunConfig.min_len
    length_penalty: float = RunConfig.length_penalty
    repetition_penalty: float = RunConfig.repetition_penalty
    num_captions: int = RunConfig.num_captions
    use_nucleus_sampling: bool = RunConfig.use_nucleus_sampling
    top_p: float = RunConfig.top_p
    temperature: float = RunConfig.temperature

    def __post_init__(self) -> None:
        if self.num_beams < 1 or self.max_len < 2:
            raise ConfigError("generation: num_beams must be at least 1 and max_len at least 2")
        if self.num_captions > self.num_beams and not self.use_nucleus_sampling:
            raise ConfigError(
                f"generation: num_captions={self.num_captions} needs num_beams of at least as many, "
                f"not {self.num_beams}, or use_nucleus_sampling=true"
            )

    @classmethod
    def from_run(cls, run: RunConfig) -> Self:
        """The fields of the same names in the run's configuration."""
        return cls(**{f.name: getattr(run, f.name) for f in fields(cls)})

    @property
    def max_new(self) -> int:
        """Most new tokens, the stop included."""
        return self.max_len - 1

    @property
    def min_new(self) -> int:
        """New tokens before a stop may come."""
        return self.min_len - 1


class Decoder(Protocol):
    """A language model that remembers what it has read, row by row."""

    def start(self, rows_per_image: int) -> Tensor:
        """Read the prefix of each image once, repeat each row, return the next token's logits (B·rows, V)."""

    def step(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Keep the given old rows, in this order, append one token to each, return the next logits (rows, V)."""


@dataclass
class Hypothesis:
    """A finished caption: token ids, the stop included when there was one."""

    score: float
    tokens: list[int]


@dataclass
class _Search:
    """One image's state in the beam search."""

    settings: GenerationSettings
    finished: list[Hypothesis] = field(default_factory=list)
    done: bool = False

    def finish(self, tokens: list[int], log_prob: float, length: int) -> None:
        """Keep a hypothesis if it is among the best `num_beams`."""
        score = log_prob / length**self.settings.length_penalty
        self.finished.append(Hypothesis(score, tokens))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[self.settings.num_beams :]

    def check_done(self, best_log_prob: float, tokens_so_far: int) -> None:
        """Stop looking once no continuation can beat the worst hypothesis kept."""
        if len(self.finished) == self.settings.num_beams:
            bound = best_log_prob / (tokens_so_far + 2) ** self.settings.length_penalty
            self.done = self.finished[-1].score >= bound


def generate(
    decoder: Decoder,
    images: int,
    stop_id: int,
    settings: GenerationSettings,
    generators: Sequence[torch.Generator] | None = None,
) -> list[list[list[int]]]:
    """Token ids of `num_captions` captions for each image, best first, the stop included when there was one.

    Args:
        decoder: has the prefixes of all images.
        images: B.
        stop_id: the token that ends a caption.
        settings: how captions are searched for.
        generators: for sampling, one an image (on the CPU): what an image gets then depends on its own alone, not on
            those beside it. None draws from torch's.
    """
    if settings.use_nucleus_sampling:
        draws = _draws(images, settings, generators)
        rows = _one_by_one(decoder, images * settings.num_captions, stop_id, settings, draws)
        return [rows[i : i + settings.num_captions] for i in range(0, len(rows), settings.num_captions)]
    if settings.num_beams == 1:
        return [[row] for row in _one_by_one(decoder, images, stop_id, settings)]
    return _beam_search(decoder, images, stop_id, settings)


def _beam_search(
    decoder: Decoder, images: int, stop_id: int, settings: GenerationSettings
) -> list[list[list[int]]]:
    beams = settings.num_beams
    searches = [_Search(settings) for _ in range(images)]
    active = list(range(images))
    sequences: list[list[int]] = [[] for _ in range(images * beams)]  # of the active images, beam by beam
    logits = decoder.start(beams)
    beam_log_probs = torch.full((images, beams), -1e9, device=logits.device)
    beam_log_probs[:, 0] = 0.0  # all beams of an image are equal at first

    for length in range(settings.max_new):
        log_probs = F.log_softmax(logits.float(), dim=-1)
        log_probs = _next_scores(log_probs, sequences, length, stop_id, settings)
        vocabulary = log_probs.shape[1]
        totals = (log_probs.unflatten(0, (-1, beams)) + beam_log_probs[..., None]).flatten(1)
        best = totals.topk(2 * beams, dim=1)
        kept_rows: list[int] = []
        kept_tokens: list[int] = []
        kept_log_probs: list[float] = []
        still_active = []
        for row, (image, values, indices) in enumerate(
            zip(active, best.values.tolist(), best.indices.tolist(), strict=True)
        ):
            search = searches[image]
            goes_on = []
            for position, (log_prob, index) in enumerate(zip(values, indices, strict=True)):
                source, token = row * beams + index // vocabulary, index % vocabulary
                if token != stop_id:
                    goes_on.append((source, token, log_prob))
                elif position < beams:
                    search.finish([*sequences[source], token], log_prob, length + 1)
            search.check_done(values[0], length)
            if search.done:
                continue
            still_active.append(image)
            for source, token, log_prob in goes_on[:beams]:
                kept_rows.append(source)
                kept_tokens.append(token)
                kept_log_probs.append(log_prob)
        active = still_active
        sequences = [[*sequences[row], token] for row, token in zip(kept_rows, kept_tokens, strict=True)]
        beam_log_probs = torch.tensor(kept_log_probs, device=logits.device).view(-1, beams)
        if not active or length + 1 == settings.max_new:
            break
        logits = decoder.step(
            torch.tensor(kept_tokens, device=logits.device), torch.tensor(kept_rows, device=logits.device)
        )

    for row, (tokens, log_prob) in enumerate(zip(sequences, beam_log_probs.flatten().tolist(), strict=True)):
        searches[active[row // beams]].finish(tokens, log_prob, len(tokens) + 1)
    return [[h.tokens for h in search.finished[: settings.num_captions]] for search in searches]


def _one_by_one(
    decoder: Decoder,
    rows: int,
    stop_id: int,
    settings: GenerationSettings,
    draws: Tensor | None = None,
) -> list[list[int]]:
    """One token at a time for each row: the likeliest, or with `draws` (rows, `max_new`) one from the nucleus."""
    sequences: list[list[int]] = [[] for _ in range(rows)]
    active = list(range(rows))
    logits = decoder.start(1 if draws is None else settings.num_captions)
    for length in range(settings.max_new):
        scores = _next_scores(logits, [sequences[row] for row in active], length, stop_id, settings)
        tokens = scores.argmax(dim=1) if draws is None else _draw(scores, settings, draws[active, length])
        for row, token in zip(active, tokens.tolist(), strict=True):
            sequences[row].append(token)
        kept = [i for i, row in enumerate(active) if sequences[row][-1] != stop_id]
        active = [active[i] for i in kept]
        if not active or length + 1 == settings.max_new:
            break
        kept_rows = torch.tensor(kept, device=logits.device)
        logits = decoder.step(tokens[kept_rows], kept_rows)
    return sequences


def _draws(images: int, settings: GenerationSettings, generators: Sequence[torch.Generator] | None) -> Tensor:
    """Uniform numbers (B·`num_captions`, `max_new`) that decide every token; each image's from its own generator."""
    shape = (settings.num_captions, settings.max_new)
    sources: Sequence[torch.Generator | None] = generators or [None] * images
    return torch.cat([torch.rand(shape, generator=own) for own in sources])


def _draw(scores: Tensor, settings: GenerationSettings, uniform: Tensor) -> Tensor:
    """(rows, V) → (rows,): one of the fewest tokens whose probabilities reach `top_p`, by numbers (rows,) in [0, 1)."""
    ordered, order = F.softmax(scores / settings.temperature, dim=-1).sort(dim=-1, descending=True)
    outside = ordered.cumsum(dim=-1) - ordered >= settings.top_p
    reached = ordered.masked_fill(outside, 0.0).cumsum(dim=-1)
    wanted = uniform.to(scores.device)[:, None] * reached[:, -1:]
    drawn = torch.searchsorted(reached, wanted, right=True)
    last = (~outside).sum(dim=-1, keepdim=True) - 1  # where rounding leads past the nucleus
    return order.gather(1, drawn.minimum(last))[:, 0]


def _next_scores(
    scores: Tensor, sequences: list[list[int]], length: int, stop_id: int, settings: GenerationSettings
) -> Tensor:
    """Scores (rows, V) of the next token in float32: tokens already said are penalised, a stop too early is out.

    Scores are logits for greedy choice and sampling, as in transformers, and log-probabilities for beams, as recorded,
    where nothing is renormalised.
    """
    scores = scores.float()
    if settings.repetition_penalty != 1.0 and length:
        said = torch.tensor(sequences, device=scores.device)
        own, penalty = scores.gather(1, said), settings.repetition_penalty
        scores = scores.scatter(1, said, torch.where(own < 0, own * penalty, own / penalty))
    if length < settings.min_new:
        scores = scores.index_fill(1, torch.tensor(stop_id, device=scores.device), -torch.inf)
    return scores
