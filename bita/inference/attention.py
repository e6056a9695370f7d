"""Where a captioning model looked, and which part of an image each word of a caption came from.

Three maps, each with a limit of its own (docs/attention.md):

- attention: the share of the queries' cross-attention that goes to each place, the mean over layers, heads and queries.
  It is the same for every word.
- gradient: attention × the gradient of a word's log-probability with respect to it, where that is positive; the mean
  over heads, as in Chefer et al. 2021 ("Generic attention-model explainability for bi-modal and encoder-decoder
  transformers"), then summed over layers and queries.
- occlusion: by how much a word's log-probability falls when a part of the image takes the image's mean colour (Zeiler
  and Fergus 2014).

The forward pass is the ordinary one: what stands beside it is computed anew from what the layers read.
Shapes: N image tokens, C their width, Q query tokens, D hidden width, A heads, H' × W' the grid of image tokens,
K cells of the occlusion a side, T tokens of the caption, S side of the processed image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from bita.errors import UserError
from bita.inference.pictures import overlay, sheet
from bita.models.base import BitaModel
from bita.models.bita_lm import BitaLM
from bita.models.bridge import Attention, BridgeLayer
from bita.models.language.decoder import IGNORED

if TYPE_CHECKING:
    from bita.models.bridge import Bridge
    from bita.models.language.generation import GenerationSettings

Map = npt.NDArray[np.float32]
CELLS = 8
"""Of the occlusion, a side."""
BATCH = 16
"""Images encoded at a time, unless told otherwise."""
SHOWN = (1024, 1024)
"""Width and height of the image that a map is laid over, at most."""
METHODS = ("gradient", "occlusion")


@dataclass(frozen=True)
class WordMap:
    """A word of the caption and what it came from.

    Attributes:
        word: as it is written.
        log_probability: of its tokens, after the image and the words before it.
        gradient: (H', W'), not negative; how large its values are depends on the model.
        occlusion: (K, K) by how much `log_probability` falls without that part, in nats; negative: it rises. None where
            it was not asked for.
    """

    word: str
    log_probability: float
    gradient: Map
    occlusion: Map | None


@dataclass(frozen=True)
class Look:
    """Where a model looked for a caption.

    Attributes:
        image: 8-bit RGB, upright, made smaller where it is larger than `SHOWN`.
        caption: what the maps are of.
        attention: (H', W') share of the cross-attention that goes to each place of the image, row by row from its top.
        elsewhere: share that goes to tokens without a place, such as a class token; with `attention` it sums to 1.
        words: one for each word of the caption, in its order.
    """

    image: Image.Image
    caption: str
    attention: Map
    elsewhere: float
    words: list[WordMap] = field(default_factory=list)

    def overlay(self, word: str | int | None = None, method: str = "gradient") -> Image.Image:
        """Return the image with a map over it, from 0 (the image as it is) to the highest value, which is hot.

        The highest is the map's own; for occlusion, whose unit is the same for all, the highest of all words.

        Args:
            word: one of `words`, as it is written (the first so written) or by its number from 0; None: `attention`.
            method: `gradient` or `occlusion`.

        Raises:
            UserError: there is no such word, or no such map.
        """
        if word is None:
            return overlay(self.image, self.attention)
        found = self.words[word] if isinstance(word, int) else self._named(word)
        if method not in METHODS:
            raise UserError(f"method={method!r}: choose one of {', '.join(METHODS)}")
        if method == "gradient":
            return overlay(self.image, found.gradient)
        if found.occlusion is None:
            raise UserError(f"method='occlusion': no part was occluded; look with occlusion={CELLS}")
        highest = max(float(other.occlusion.max()) for other in self.words if other.occlusion is not None)
        return overlay(self.image, found.occlusion, highest)

    def sheet(self, method: str = "gradient") -> Image.Image:
        """Return one picture: the image under the caption, its attention, and a map for each word."""
        cells = [(self.image, self.caption), (self.overlay(), "(attention)")]
        cells += [(self.overlay(k, method), found.word) for k, found in enumerate(self.words)]
        return sheet(cells, columns=4)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        shown: bytes = self.sheet()._repr_png_()  # type: ignore[assignment]
        return shown

    def _named(self, word: str) -> WordMap:
        for found in self.words:
            if found.word == word:
                return found
        raise UserError(f"word {word!r}: is not in the caption {self.caption!r}")


@dataclass
class Read:
    """What one cross-attention read and gave in a forward pass.

    Attributes:
        module: the layer's part.
        hidden: (1, Q, D) the queries before it.
        image: (1, N, C).
        merged: (1, Q, D) the heads' weighted values side by side, before the output's linear layer.
    """

    module: Attention
    hidden: Tensor
    image: Tensor
    merged: Tensor

    def weights(self) -> Tensor:
        """(A, Q, N) without gradient; rows sum to 1."""
        with torch.no_grad():
            return self.module.weights(self.hidden, self.image)[0]

    def gradient(self, of_merged: Tensor) -> Tensor:
        """Gradient with respect to the weights (A, Q, N) from that with respect to `merged` (1, Q, D).

        `merged` is weights × values for each head, so it is the product with the values' transpose, exactly.
        """
        with torch.no_grad():
            values = self.module.values(self.image)[0].float()
            return of_merged[0].float().unflatten(-1, (len(values), -1)).transpose(0, 1) @ values.mT


@contextmanager
def cross_attention(bridge: Bridge) -> Iterator[list[Read]]:
    """What every cross-attention of a bridge reads and gives, in a list that the passes inside fill.

    Raises:
        UserError: the bridge has none that is known here.
    """
    modules = [m.cross for m in bridge.modules() if isinstance(m, BridgeLayer) and m.cross is not None]
    if not modules:
        raise UserError(f"{type(bridge).__name__}: this bridge has no cross-attention to look at")
    reads: list[Read] = []

    def note(module: Attention) -> list[torch.utils.hooks.RemovableHandle]:
        given: list[Tensor] = []

        def keep(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            given[:] = inputs[:2]

        def add(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            reads.append(Read(module, given[0], given[1], inputs[0]))

        return [module.register_forward_pre_hook(keep), module.output.register_forward_pre_hook(add)]

    handles = [handle for module in modules for handle in note(module)]
    try:
        yield reads
    finally:
        for handle in handles:
            handle.remove()


def look(
    model: BitaModel,
    image: Image.Image,
    pixels: Tensor,
    settings: GenerationSettings,
    *,
    caption: str | None = None,
    occlusion: int = CELLS,
    batch_size: int = BATCH,
) -> Look:
    """Find out where a model looks in an image for a caption.

    Args:
        model: in evaluation mode.
        image: 8-bit RGB, for the overlays.
        pixels: (3, S, S), what its processor makes of it.
        settings: of the search that writes the caption.
        caption: None: the model's own.
        occlusion: cells a side, K; 0: none.
        batch_size: images encoded at a time.

    Raises:
        UserError: the caption has no words, or the model's bridge no cross-attention.
    """
    if not isinstance(model, BitaLM):
        raise UserError(
            f"{type(model).__name__}: only a model that writes after query tokens can be looked at"
        )
    pixels = pixels.to(model.device)
    if caption is None:
        own = replace(settings, num_captions=1, use_nucleus_sampling=False)
        with torch.inference_mode():
            (captions,) = model.candidates(model.view_tokens(pixels[None], own.views), own)
        written = [token for token in captions[0].ids if token != model.tokens.stop]
        caption = model.decode([written])[0]
    else:
        written = tokens_of(model, caption)
    words = words_of(model, written)
    if not words:
        raise UserError("caption: it has no words to look at")
    ids, labels = _targets(model, written)
    with cross_attention(model.bridge) as reads, torch.enable_grad():
        with torch.no_grad():
            raw = model.raw_tokens(pixels[None])
            tokens = model.ln_vision(raw.float())
        prefix = model.opt_proj(model.query_image(tokens.requires_grad_()))
        likely = _log_probabilities(model, prefix, ids, labels)[0]
    weights = torch.stack([read.weights() for read in reads])
    attention, grid = weights.mean(dim=(0, 1, 2)), model.visual_encoder.grid(tokens.shape[1])
    covered = _occluded(model, pixels, (ids, labels), occlusion, batch_size) if occlusion else None
    found = []
    for word, places in words:
        score = likely[places].sum()
        gradient, whole = _on_grid(relevance(score, reads), grid), float(score.detach())
        falls = None if covered is None else whole - covered[..., places].sum(dim=-1)
        found.append(WordMap(word, whole, gradient, None if falls is None else falls.numpy()))
    on_grid = _on_grid(attention, grid)
    shown = image.copy()
    shown.thumbnail(SHOWN)
    return Look(shown, caption, on_grid, max(0.0, 1 - float(on_grid.sum())), found)


def relevance(score: Tensor, reads: Sequence[Read]) -> Tensor:
    """Gradient × attention (N,) of a score of the pass that gave `reads`, summed over layers and queries."""
    gradients = torch.autograd.grad(score, [read.merged for read in reads], retain_graph=True)
    products = [read.gradient(g) * read.weights() for read, g in zip(reads, gradients, strict=True)]
    return torch.stack([product.clamp(min=0).mean(dim=0).sum(dim=0) for product in products]).sum(dim=0)


def tokens_of(model: BitaLM, caption: str) -> list[int]:
    """Token ids of a caption as they follow the model's prompt."""
    prompt = model.cfg.prompt
    joined = not prompt or prompt[-1].isspace() or model.cfg.prompt_joint == "glued"
    text = f"{prompt}{'' if joined else ' '}{caption}"
    ids, _ = model.tokens.batch([text], prompt, longest=len(text) + 8)
    return ids[0, len(model.tokens.prompt(prompt)) : -1].tolist()


def words_of(model: BitaLM, ids: list[int]) -> list[tuple[str, list[int]]]:
    """Words of a caption's token ids, each with the places of its tokens."""
    assert model.tokenizer is not None
    places: dict[int, list[int]] = {}
    before = text = ""
    for place in range(len(ids)):
        text = str(model.tokenizer.decode(ids[: place + 1], skip_special_tokens=True))
        if text != before:  # special tokens add nothing
            waiting = text[-1].isspace() if text else False  # for the word that comes
            places.setdefault(len(text.split()) - (not waiting), []).append(place)
        before = text
    return [(word, places[number]) for number, word in enumerate(text.split()) if number in places]


def _targets(model: BitaLM, written: list[int]) -> tuple[Tensor, Tensor]:
    """Ids and labels (1, P + T), on the CPU, of which the prompt's P are `IGNORED`."""
    prompt = model.tokens.prompt(model.cfg.prompt)
    return torch.tensor([[*prompt, *written]]), torch.tensor([[IGNORED] * len(prompt) + written])


def _log_probabilities(model: BitaLM, prefix: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each labelled token of one caption, after each of B prefixes: (B, T)."""
    rows = (len(prefix), -1)
    logits, targets, _ = model.predicted(prefix, ids.expand(rows), labels.expand(rows))
    return logits.log_softmax(dim=-1).gather(1, targets[:, None]).view(rows)


@torch.no_grad()
def _occluded(
    model: BitaLM, pixels: Tensor, caption: tuple[Tensor, Tensor], cells: int, batch_size: int
) -> Tensor:
    """Log-probabilities of the caption's tokens (K, K, T) with each cell of the image (3, S, S) covered."""
    edges = [round(k * pixels.shape[1] / cells) for k in range(cells + 1)]
    boxes = [(edges[r : r + 2], edges[c : c + 2]) for r in range(cells) for c in range(cells)]
    mean, found = pixels.mean(dim=(1, 2))[:, None, None], []
    for start in range(0, len(boxes), batch_size):
        part = boxes[start : start + batch_size]
        images = pixels.repeat(len(part), 1, 1, 1)
        for image, ((top, bottom), (left, right)) in zip(images, part, strict=True):
            image[:, top:bottom, left:right] = mean
        found.append(_log_probabilities(model, model.prefix(images), *caption).cpu())
    return torch.cat(found).unflatten(0, (cells, cells))


def _on_grid(values: Tensor, grid: tuple[int, int]) -> Map:
    """(N,) → (H', W'): the last tokens are the places."""
    return values[-grid[0] * grid[1] :].reshape(grid).float().cpu().numpy()
