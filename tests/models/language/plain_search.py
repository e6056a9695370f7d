"""The beam search in plain Python, image by image and candidate by candidate: what the one on the device must equal."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from bita.models.language.generation import Decoder, GenerationSettings


@dataclass
class Image:
    """One image's finished hypotheses: score and tokens, the stop included when there was one."""

    settings: GenerationSettings
    finished: list[tuple[float, list[int]]] = field(default_factory=list)
    done: bool = False

    def finish(self, tokens: list[int], log_prob: float, length: int) -> None:
        """Keep a hypothesis if it is among the best `num_beams`."""
        self.finished.append((log_prob / length**self.settings.length_penalty, tokens))
        self.finished.sort(key=lambda hypothesis: -hypothesis[0])
        del self.finished[self.settings.num_beams :]

    def check_done(self, best_log_prob: float, tokens_so_far: int) -> None:
        """Stop looking once no continuation can beat the worst hypothesis kept."""
        if len(self.finished) == self.settings.num_beams:
            bound = best_log_prob / (tokens_so_far + 2) ** self.settings.length_penalty
            self.done = self.finished[-1][0] >= bound


def plain_beam_search(
    decoder: Decoder, images: int, stop_id: int, settings: GenerationSettings
) -> list[list[list[int]]]:
    """What `generation.generate` gives with beams."""
    beams = settings.num_beams
    searches = [Image(settings) for _ in range(images)]
    active = list(range(images))
    sequences: list[list[int]] = [[] for _ in range(images * beams)]  # of the active images, beam by beam
    logits = decoder.start().repeat_interleave(beams, dim=0)
    beam_log_probs = torch.full((images, beams), -1e9)
    beam_log_probs[:, 0] = 0.0  # all beams of an image are equal at first

    for length in range(settings.max_new):
        log_probs = F.log_softmax(logits.float(), dim=-1)
        if settings.repetition_penalty != 1.0 and length:
            said = torch.tensor(sequences)
            log_probs.scatter_(1, said, log_probs.gather(1, said) * settings.repetition_penalty)
        if length < settings.min_new:
            log_probs[:, stop_id] = -torch.inf
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
        if still_active != active:
            decoder.keep(torch.tensor([active.index(image) for image in still_active], dtype=torch.long))
        active = still_active
        sequences = [[*sequences[row], token] for row, token in zip(kept_rows, kept_tokens, strict=True)]
        beam_log_probs = torch.tensor(kept_log_probs).view(-1, beams)
        if not active or length + 1 == settings.max_new:
            break
        shape = (len(active), beams)
        parents = torch.tensor(kept_rows).view(shape) % beams
        logits = decoder.step(torch.tensor(kept_tokens).view(shape), parents).flatten(0, 1)

    for row, (tokens, log_prob) in enumerate(zip(sequences, beam_log_probs.flatten().tolist(), strict=True)):
        searches[active[row // beams]].finish(tokens, log_prob, len(tokens) + 1)
    return [[tokens for _, tokens in search.finished[: settings.num_captions]] for search in searches]
