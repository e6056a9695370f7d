"""From a prefix to token ids: the published beam search, greedy choice, and sampling.

The beam search follows the recorded behaviour of the system's release, which differs from today's libraries where
hypotheses are cut at the maximum length. Its rules, with n the number of new tokens, the stop included:

- each step looks at the 2·beams best continuations of an image; a stop among the first `beams` of them ends a
  hypothesis with score Σ log p / n^length_penalty; the best `beams` others go on;
- an image is done when it holds `beams` hypotheses and the worst is no worse than the best continuation's
  Σ log p / (tokens so far + 2)^length_penalty;
- beams alive at the maximum are hypotheses with score Σ log p / (n + 1)^length_penalty.

A repetition penalty is applied after the log-softmax for beams, as recorded, and to the logits for greedy choice and
sampling, as in transformers. A caption's log-probability is Σ log p of its tokens, the stop included: for beams as the
search adds them up, else by the model's own distribution, whatever temperature or nucleus drew them.

The search itself runs on the device: the host looks every few tokens which images are done.

Shapes: B images, K beams, R captions an image (beams, or drawn ones), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import takewhile
from typing import Any, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from bita.config.run import Choice, RunConfig
from bita.config.types import check_value
from bita.errors import ConfigError

LOOK_EVERY = 4
"""Tokens between two looks at which images are done, where a look makes the host wait for a device."""
LEAVE_TOGETHER = 8
"""Images that are done leave the others when they are at least one in so many: leaving copies what the others have."""


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
    choose_by: Choice = RunConfig.choose_by
    views: int = RunConfig.views
    speed: Literal["fast", "reference"] = RunConfig.speed

    def __post_init__(self) -> None:
        for entry in fields(self):
            check_value(RunConfig, entry.name, getattr(self, entry.name), "generation")
        if self.num_captions > self.num_beams and not self.use_nucleus_sampling:
            raise ConfigError(
                f"generation: num_captions={self.num_captions} needs num_beams of at least as many, "
                f"not {self.num_beams}, or use_nucleus_sampling=true"
            )

    @classmethod
    def from_run(cls, run: RunConfig) -> Self:
        """Return the fields of the same names in the run's configuration."""
        return cls(**{f.name: getattr(run, f.name) for f in fields(cls)})

    def search(self) -> dict[str, Any]:
        """What decides which caption comes out, by field."""
        return {name: value for name, value in asdict(self).items() if name not in ("num_captions", "speed")}

    def every_beam(self) -> Self:
        """The same search, of which all captions are wanted."""
        return self if self.use_nucleus_sampling else replace(self, num_captions=self.num_beams)

    @property
    def width(self) -> int:
        """Captions of an image under way at a time: its beams, or those that are drawn."""
        return self.num_captions if self.use_nucleus_sampling else self.num_beams

    @property
    def max_new(self) -> int:
        """Most new tokens, the stop included."""
        return self.max_len - 1

    @property
    def min_new(self) -> int:
        """New tokens before a stop may come."""
        return self.min_len - 1


@dataclass(frozen=True)
class Hypothesis:
    """A caption that a search found: its token ids, the stop included when there was one, and its log-probability."""

    ids: list[int]
    log_probability: float


class Candidate(NamedTuple):
    """A caption as text, the token ids it was written in (the stop included), and its log-probability."""

    text: str
    ids: list[int]
    log_probability: float


class Decoder(Protocol):
    """A language model that remembers what it has read: R captions for each of B images."""

    def start(self) -> Tensor:
        """Read the prefix of each image; the first token's logits (B, V)."""

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Read a token (B, R) more on each caption, going on from the one at `parents` (B, R); logits (B, R, V)."""

    def keep(self, images: Tensor) -> None:
        """Go on with the images at these places (n,) alone."""


def generate(
    decoder: Decoder,
    images: int,
    stop_id: int,
    settings: GenerationSettings,
    generators: Sequence[torch.Generator] | None = None,
) -> list[list[list[int]]]:
    """Token ids of `num_captions` captions for each image, best first, the stop included when there was one.

    See `search`.
    """
    found = search(decoder, images, stop_id, settings, generators)
    return [[caption.ids for caption in captions] for captions in found]


def search(
    decoder: Decoder,
    images: int,
    stop_id: int,
    settings: GenerationSettings,
    generators: Sequence[torch.Generator] | None = None,
) -> list[list[Hypothesis]]:
    """`num_captions` captions for each image, best first.

    Args:
        decoder: has the prefixes of all images.
        images: B.
        stop_id: the token that ends a caption.
        settings: how captions are searched for.
        generators: for sampling, one an image (on the CPU): what an image gets then depends on its own alone, not on
            those beside it. None draws from torch's.
    """
    logits = decoder.start()
    under_way: _Search
    if settings.use_nucleus_sampling or settings.num_beams == 1:
        under_way = _OneByOne(settings, stop_id, logits)
        if settings.use_nucleus_sampling:
            under_way.draws = _draws(images, settings, generators).to(logits.device)
    else:
        under_way = _BeamSearch(settings, stop_id, logits)
    written: list[list[Hypothesis]] = [[] for _ in range(images)]
    active = list(range(images))
    every = 1 if logits.device.type == "cpu" else LOOK_EVERY
    logits = logits[:, None].expand(-1, under_way.width, -1)
    for length in range(settings.max_new):
        tokens, parents = under_way.advance(logits, length)
        if length + 1 == settings.max_new:
            break
        if length % every == every - 1:
            done = under_way.done.tolist()
            if all(done):
                break
            if sum(done) * LEAVE_TOGETHER >= len(done):
                for place, captions in under_way.captions().items():
                    written[active[place]] = captions
                active = [image for image, finished in zip(active, done, strict=True) if not finished]
                going_on = (~under_way.done).nonzero()[:, 0]
                under_way.keep(going_on)
                decoder.keep(going_on)
                tokens, parents = tokens[going_on], parents[going_on]
        logits = decoder.step(tokens, parents)
    under_way.close()
    for place, captions in under_way.captions().items():
        written[active[place]] = captions
    return written


class _Search:
    """Captions of B images under way, R an image, all on the device and in shapes that do not depend on the values.

    Attributes:
        said: (B, R, `max_new`) tokens so far.
        done: (B,) whether an image's captions are what they will be.
    """

    kept: tuple[str, ...] = ("said", "done")
    """Names of the tensors that have a row an image."""

    def __init__(self, settings: GenerationSettings, stop_id: int, logits: Tensor) -> None:
        self.settings, self.stop_id, self.width = settings, stop_id, settings.width
        self.device, images = logits.device, len(logits)
        self.said = torch.full((images, self.width, settings.max_new), stop_id, device=self.device)
        self.done = torch.zeros(images, dtype=torch.bool, device=self.device)

    def advance(self, logits: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Choose token number `length` by logits (B, R, V); the tokens and the captions they go on from, (B, R)."""
        raise NotImplementedError

    def keep(self, images: Tensor) -> None:
        """Go on with the images at these places alone."""
        for name in self.kept:
            setattr(self, name, getattr(self, name)[images])

    def close(self) -> None:
        """The most tokens are written."""
        self.done = torch.ones_like(self.done)

    def captions(self) -> dict[int, list[Hypothesis]]:
        """Place of an image that is done → its captions, best first."""
        raise NotImplementedError

    def _scores(self, scores: Tensor, length: int) -> Tensor:
        """Scores (B, R, V) of the next token: tokens already said are penalised, a stop too early is out.

        Scores are logits for greedy choice and sampling, as in transformers, and log-probabilities for beams, as
        recorded, where nothing is renormalised.
        """
        penalty = self.settings.repetition_penalty
        if penalty != 1.0 and length:
            said = self.said[:, :, :length]
            own = scores.gather(2, said)
            scores = scores.scatter(2, said, torch.where(own < 0, own * penalty, own / penalty))
        if length < self.settings.min_new:
            scores = scores.index_fill(2, torch.tensor(self.stop_id, device=self.device), -torch.inf)
        return scores


class _BeamSearch(_Search):
    """The published search.

    Attributes:
        log_probs: (B, K) of the beams.
        scores: (B, K) float64 of the finished hypotheses, best first; −∞ where there is none yet.
        finished: (B, K, `max_new`) their tokens.
        lengths: (B, K) how many of these they have.
        totals: (B, K) their Σ log p.
    """

    kept = ("said", "done", "log_probs", "scores", "finished", "lengths", "totals")

    def __init__(self, settings: GenerationSettings, stop_id: int, logits: Tensor) -> None:
        super().__init__(settings, stop_id, logits)
        self.log_probs = torch.full(self.said.shape[:2], -1e9, device=self.device)
        self.log_probs[:, 0] = 0.0  # all beams of an image are equal at first
        self.scores = torch.full_like(self.log_probs, -torch.inf, dtype=torch.float64)
        self.finished, self.lengths = self.said.clone(), torch.zeros_like(self.said[:, :, 0])
        self.totals = torch.zeros_like(self.log_probs)

    def advance(self, logits: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """See `_Search.advance`."""
        beams = self.width
        log_probs = self._scores(F.log_softmax(logits.float(), dim=-1), length)
        best = (log_probs + self.log_probs[:, :, None]).flatten(1).topk(2 * beams, dim=1)
        parents, tokens = best.indices // logits.shape[2], best.indices % logits.shape[2]
        stops = tokens == self.stop_id
        sources = parents[:, :beams, None].expand(-1, -1, self.said.shape[2])
        self._finish(
            self.said.gather(1, sources), best.values[:, :beams], stops[:, :beams], length + 1, length + 1
        )
        bound = best.values[:, 0].double() / (length + 2) ** self.settings.length_penalty
        self.done |= (self.scores[:, -1] > -torch.inf) & (self.scores[:, -1] >= bound)
        goes_on = stops.int().argsort(dim=1, stable=True)[:, :beams]
        parents, tokens = parents.gather(1, goes_on), tokens.gather(1, goes_on)
        self.log_probs = best.values.gather(1, goes_on)
        self.said = self.said.gather(1, parents[:, :, None].expand_as(self.said))
        self.said[:, :, length] = tokens
        return tokens, parents

    def close(self) -> None:
        """Beams that are alive are hypotheses too."""
        every, cut = torch.ones_like(self.log_probs, dtype=torch.bool), self.settings.max_new
        self._finish(self.said, self.log_probs, every, cut, cut + 1)
        super().close()

    def _finish(self, said: Tensor, log_probs: Tensor, which: Tensor, tokens: int, length: int) -> None:
        """Keep the best `num_beams` of the finished hypotheses and of those (B, K) that `which` marks."""
        scores = log_probs.double() / length**self.settings.length_penalty
        scores = scores.where(which & ~self.done[:, None], -torch.inf)
        best = torch.cat([self.scores, scores], dim=1).sort(dim=1, descending=True, stable=True)
        order = best.indices[:, : self.width]
        self.scores = best.values[:, : self.width]
        lengths = torch.cat([self.lengths, torch.full_like(self.lengths, tokens)], dim=1)
        self.lengths = lengths.gather(1, order)
        self.totals = torch.cat([self.totals, log_probs], dim=1).gather(1, order)
        finished = torch.cat([self.finished, said], dim=1)
        self.finished = finished.gather(1, order[:, :, None].expand_as(self.finished))

    def captions(self) -> dict[int, list[Hypothesis]]:
        """See `_Search.captions`."""
        columns = (column.tolist() for column in (self.finished, self.lengths, self.totals))
        found = [
            [Hypothesis(row[:length], total) for row, length, total in zip(*of_image, strict=True)]
            for of_image in zip(*columns, strict=True)
        ]
        return {
            place: found[place][: self.settings.num_captions]
            for place, done in enumerate(self.done.tolist())
            if done
        }


class _OneByOne(_Search):
    """The likeliest token each time; or one from the nucleus.

    Attributes:
        ended: (B, R) whether a caption has its stop.
        draws: (B, R, `max_new`) uniform numbers that decide the tokens, where they are drawn.
        log_probs: (B, R) of the captions.
    """

    kept = ("said", "done", "ended", "draws", "log_probs")

    def __init__(self, settings: GenerationSettings, stop_id: int, logits: Tensor) -> None:
        super().__init__(settings, stop_id, logits)
        self.draws = torch.zeros(self.said.shape, device=self.device)
        self.ended = torch.zeros(self.said.shape[:2], dtype=torch.bool, device=self.device)
        self.log_probs = torch.zeros(self.said.shape[:2], device=self.device)

    def advance(self, logits: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """See `_Search.advance`."""
        logits = logits.float()
        scores = self._scores(logits, length)
        if self.settings.use_nucleus_sampling:
            tokens = _draw(scores, self.settings, self.draws[:, :, length])
        else:
            tokens = scores.argmax(dim=2)
        said = logits.gather(2, tokens[:, :, None])[:, :, 0] - logits.logsumexp(dim=2)
        self.log_probs += said.masked_fill(self.ended, 0.0)
        self.said[:, :, length] = tokens.where(~self.ended, self.stop_id)
        self.ended |= tokens == self.stop_id
        self.done = self.ended.all(dim=1)
        return tokens, torch.arange(self.width, device=self.device).expand_as(tokens)

    def captions(self) -> dict[int, list[Hypothesis]]:
        """See `_Search.captions`."""
        rows = zip(self.done.tolist(), self.said.tolist(), self.log_probs.tolist(), strict=True)
        return {
            place: [
                Hypothesis(
                    [*takewhile(lambda token: token != self.stop_id, row), self.stop_id][: len(row)], sum_
                )
                for row, sum_ in zip(said, sums, strict=True)
            ]
            for place, (done, said, sums) in enumerate(rows)
            if done
        }


def _draws(images: int, settings: GenerationSettings, generators: Sequence[torch.Generator] | None) -> Tensor:
    """Uniform numbers (B, `num_captions`, `max_new`) that decide every token; each image's from its own generator."""
    shape = (settings.num_captions, settings.max_new)
    sources: Sequence[torch.Generator | None] = generators or [None] * images
    return torch.stack([torch.rand(shape, generator=own) for own in sources])


def _draw(scores: Tensor, settings: GenerationSettings, uniform: Tensor) -> Tensor:
    """(B, R, V) → (B, R): one of the fewest tokens whose probabilities reach `top_p`, by numbers (B, R) in [0, 1)."""
    ordered, order = F.softmax(scores / settings.temperature, dim=-1).sort(dim=-1, descending=True)
    outside = ordered.cumsum(dim=-1) - ordered >= settings.top_p
    reached = ordered.masked_fill(outside, 0.0).cumsum(dim=-1)
    drawn = torch.searchsorted(reached, uniform[..., None] * reached[..., -1:], right=True)
    last = (~outside).sum(dim=-1, keepdim=True) - 1  # where rounding leads past the nucleus
    return order.gather(-1, drawn.minimum(last))[..., 0]
