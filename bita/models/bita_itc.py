"""Stage 1: query tokens and captions are aligned (BITA, section III-B; BLIP-2, Li et al. 2023, section 3.2).

By contrast (ITC); and, where `model.loss_weights` asks for them, by telling pairs from hard negatives (ITM) and by
writing the caption word by word (ITG, the Q-Former only).
Shapes: B images and captions of this process, W processes, Q query tokens, D hidden width, E embedding width,
T = `max_txt_len`, N image tokens, C image width.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bita import registry
from bita.batch import Batch
from bita.config.parts import FormerConfig, ModelConfig
from bita.distributed import gather_features, rank, world_size
from bita.models.base import BitaModel, for_captions
from bita.models.bridge import PAD_ID
from bita.models.contrast import (
    Comparison,
    caption_number,
    draw_negatives,
    similarity,
    top1_accuracy,
    unit,
)
from bita.models.heads import MaskedLanguageHead, WordHead
from bita.models.language.decoder import IGNORED
from bita.models.language.tokenizers import TEXT_TOKENIZER_FOLDER, Remembered, load_tokenizer
from bita.precision import in_float32
from bita.registry import NoKeys

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Reading:
    """What the model has seen of a batch, which its losses share.

    Attributes:
        raw: (I, N, C) image tokens before `ln_vision`, and `tokens` after it.
        ids: (B, T) token ids of the captions, on the CPU, and `text_ids` on the model's device.
        groups: (B,) equal where captions are positives of each other's images, or None.
        queries: (I, Q, D) what the queries read, where a loss needs it.
        states: the queries' hidden states of each layer, where captions are written after them; else empty.
    """

    def __init__(self, model: BitaITC, batch: Batch) -> None:
        self.model = model
        self.raw, self.groups = model.batch_tokens(batch), model._groups(batch)
        self.tokens, self.ids = model.ln_vision(self.raw.float()), model._encode(batch["text"])
        self.text_ids = self.ids.to(model.device, non_blocking=True)
        self.states: list[Tensor] = []
        losses = [loss for _, loss in model.loss_functions]
        self.compared = any(loss.compares for loss in losses)
        if any(loss.writes for loss in losses):
            self.queries, self.states = model.bridge.read(model._queries(len(self.tokens)), self.tokens)
        elif any(loss.reads for loss in losses):
            self.queries = model.query_image(self.tokens)

    def for_captions(self, rows: Tensor) -> Tensor:
        """Return a row an image → a row a caption."""
        return for_captions(rows, len(self.ids))

    @cached_property
    def pairs(self) -> Comparison:
        """Similarities of images and captions of all processes; zero where no loss compares."""
        model = self.model
        if not self.compared:
            return model._partners(len(self.text_ids), self.groups)
        images = self.for_captions(model._image_features_of(self.queries))
        return model.compare(images, model.text_features(self.text_ids), self.groups)


class Stage1Loss:
    """A loss of stage 1; one of your own extends it and is registered. As an nn.Module too it has its own weights.

    Attributes:
        heads: the model's heads that learn by it: `vision_proj`, `text_proj`, `temp`, `itm_head`, `mlm_head`.
        reads: whether it needs `Reading.queries`.
        compares: whether it needs `Reading.pairs` with similarities.
        writes: whether it needs `Reading.states`, of a bridge that writes.
    """

    Config: ClassVar[type] = NoKeys
    heads: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[bool] = True
    compares: ClassVar[bool] = False
    writes: ClassVar[bool] = False

    def __init__(self, model: BitaITC, args: Any) -> None:
        super().__init__()
        self.args = args

    def __call__(self, model: BitaITC, seen: Reading) -> Tensor | dict[str, Tensor]:
        """Return a batch's loss; or the loss as `NAME_loss` and other scalars to log."""
        raise NotImplementedError


class Contrast(Stage1Loss):
    """Image-text contrast, `itc`."""

    heads = ("vision_proj", "text_proj", "temp")
    compares = True

    def __call__(self, model: BitaITC, seen: Reading) -> dict[str, Tensor]:
        """See `Stage1Loss`."""
        return model._contrast(seen.pairs, seen.groups)


class Matching(Stage1Loss):
    """Image-text matching, `itm`, against hard negatives."""

    heads = ("itm_head",)
    reads = False

    def __call__(self, model: BitaITC, seen: Reading) -> dict[str, Tensor]:
        """See `Stage1Loss`."""
        raw, tokens = seen.for_captions(seen.raw), seen.for_captions(seen.tokens)
        return model.match(raw, tokens, seen.text_ids, seen.pairs)


class Writing(Stage1Loss):
    """Image-grounded captioning, `itg`."""

    heads = ("mlm_head",)
    writes = True

    def __call__(self, model: BitaITC, seen: Reading) -> Tensor:
        """See `Stage1Loss`."""
        return model.caption_loss(seen.ids, [seen.for_captions(states) for states in seen.states])


class BitaITC(BitaModel):
    """The stage-1 model, arch `bita_former`.

    Args:
        cfg: sizes and options.
        tokenizer: BERT's, with [DEC] added; None when only token ids will be given.
    """

    Config = FormerConfig
    cfg: ModelConfig

    def __init__(self, cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        vocab_size = cfg.text_vocab_size if tokenizer is None else len(tokenizer)
        super().__init__(cfg, vocab_size=vocab_size)
        width = cfg.bridge_size.hidden_size
        self.tokenizer = tokenizer
        self.dec_id = vocab_size - 1 if tokenizer is None else int(tokenizer.bos_token_id)
        self.vision_proj = nn.Linear(width, cfg.embed_dim)
        self.text_proj = nn.Linear(width, cfg.embed_dim)
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.itm_head = nn.Linear(width, 2)
        self.mlm_head = MaskedLanguageHead(width, vocab_size)
        self.word_head = WordHead(self.visual_encoder.width, vocab_size) if cfg.word_loss_weight else None
        self.losses = cfg.losses()
        self.loss_functions: list[tuple[str, Stage1Loss]] = []
        for name in self.losses:
            kind = registry.losses.get(name)
            loss = kind(self, cfg.loss_args.get(name) or registry.losses.config(name)())
            self.loss_functions.append((name, loss))
            if isinstance(loss, nn.Module):
                self.add_module(f"{name}_parts", loss)
        # published files have all of them
        for head in ("vision_proj", "text_proj", "temp", "itm_head", "mlm_head"):
            used = any(head in loss.heads for _, loss in self.loss_functions)
            getattr(self, head).requires_grad_(used)

    @classmethod
    def from_config(cls, cfg: ModelConfig, load_weights: bool = True) -> Self:
        """Build with the tokenizer that the configuration names, and fresh weights.

        Raises:
            ConfigError: the tokenizer is not there.
        """
        return cls(cfg, load_tokenizer("model.text_tokenizer", cfg.text_tokenizer, load_weights, dec=True))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sum of a batch's losses, each of them, and the shares that came right."""
        seen = Reading(self, batch)
        output: dict[str, Tensor] = {}
        for name, compute in self.loss_functions:
            found = compute(self, seen)
            output |= found if isinstance(found, dict) else {f"{name}_loss": found}
        loss = torch.stack([weight * output[f"{name}_loss"] for name, weight in self.losses.items()]).sum()
        if self.word_head is not None:
            output["word_loss"] = self.word_head(seen.for_captions(seen.tokens), seen.text_ids)
            loss = loss + self.cfg.word_loss_weight * output["word_loss"]
        return {"loss": loss} | {name: value.detach() for name, value in output.items()}

    @property
    def aligns(self) -> bool:
        """See `BitaModel.aligns`."""
        return "itc" in self.losses

    def keep_tokenizer(self, folder: Path) -> None:
        """See `BitaModel.keep_tokenizer`."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder / TEXT_TOKENIZER_FOLDER)

    def save_parts(self, folder: Path, max_shard: str) -> set[str]:
        """See `BitaModel.save_parts`: the tokenizer."""
        self.keep_tokenizer(folder)
        return set()

    def tokenize(self, texts: list[str]) -> Tensor:
        """B captions → ids (B, T) on the model's device, always padded to T, since padding takes part in the IFT."""
        return self._encode(texts).to(self.device, non_blocking=True)

    def image_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, Q, E) float32, unit length."""
        return self.project(self.encode_image(images))

    def evaluate_batch(self, batch: Batch) -> tuple[Tensor, tuple[float, int] | None]:
        """Features (B, Q, E) of a batch's images and, where it is trained, the caption loss and its number of words."""
        tokens = self.ln_vision(self.batch_tokens(batch).float())
        if "itg" not in self.losses:
            return self.project(tokens), None
        ids = self._encode(batch["text"])
        queries, seen = self.bridge.read(self._queries(len(tokens)), tokens)
        words = int((ids[:, 1:] != PAD_ID).sum())
        return self._image_features_of(queries), (float(self.caption_loss(ids, seen)), words)

    def project(self, image_tokens: Tensor) -> Tensor:
        """(B, N, C) → (B, Q, E) float32, unit length."""
        return self._image_features_of(self.query_image(image_tokens))

    def text_features(self, text_ids: Tensor) -> Tensor:
        """(B, T) → (B, E) float32, unit length."""
        return unit(self.text_proj, self.bridge(text_ids=text_ids)[:, 0])

    def contrast(self, images: Tensor, texts: Tensor, groups: Tensor | None = None) -> dict[str, Tensor]:
        """Contrastive loss, both directions averaged, against the features of all processes.

        Args:
            images: (B, Q, E).
            texts: (B, E).
            groups: (B,) int64; pairs with equal numbers are positives of each other. None: only its own.
        """
        output = self._contrast(self.compare(images, texts, groups), groups)
        return {"loss": output.pop("itc_loss")} | output

    def compare(self, images: Tensor, texts: Tensor, groups: Tensor | None = None) -> Comparison:
        """Return this process's features (B, Q, E) and (B, E) against those of all processes."""
        all_images = gather_features(images, with_grad=self.cfg.itc_gather_grad)
        all_texts = gather_features(texts, with_grad=self.cfg.itc_gather_grad)
        pairs = self._partners(len(texts), groups)
        return replace(
            pairs,
            to_text=similarity(images, all_texts) / self.temp,
            to_image=similarity(all_images, texts).T / self.temp,
        )

    def match(self, raw: Tensor, tokens: Tensor, text_ids: Tensor, pairs: Comparison) -> dict[str, Tensor]:
        """Matching loss of each pair, of its image with a wrong text, and of its text with a wrong image.

        Negatives come from all processes, the more similar the likelier; what is a positive of a pair
        (`itc_positives`) is never one. A pair for which the batch holds none goes without.

        Args:
            raw: (B, N, C), before `ln_vision`: half the traffic between processes where the encoder is in 16 bit.
            tokens: (B, N, C), after it.
            text_ids: (B, T).
            pairs: similarities to draw by.
        """
        text, has_text = draw_negatives(pairs.to_text, pairs.positives, sample=self.training)
        image, has_image = draw_negatives(pairs.to_image, pairs.positives, sample=self.training)
        wrong_texts = gather_features(text_ids)[text]
        wrong_images = gather_features(raw, with_grad=not self.cfg.freeze_vit)[image]
        joint = self.joint_features(
            torch.cat([tokens, tokens, self.ln_vision(wrong_images.float())]),
            torch.cat([text_ids, wrong_texts, text_ids]),
        )
        logits = self._match_logits(joint)
        has_wrong = torch.cat([has_text, has_image])
        labels = torch.cat([has_text.new_ones(len(tokens)).long(), torch.where(has_wrong, 0, IGNORED)])
        return {
            "itm_loss": F.cross_entropy(logits, labels, ignore_index=IGNORED),
            "itm_right": (logits.argmax(dim=1) == labels).sum() / (labels != IGNORED).sum(),
        }

    def caption_loss(self, ids: Tensor, seen: list[Tensor]) -> Tensor:
        """Mean cross-entropy of the captions' words, [DEC] in front, each after the queries and the words before it.

        Args:
            ids: (B, T), on the CPU, so that the words to predict are found without waiting for the device.
            seen: what `Bridge.read` gave.
        """
        rows, columns = (ids[:, 1:] != PAD_ID).nonzero(as_tuple=True)
        targets = ids[rows, columns + 1].to(self.device, non_blocking=True)
        rows, columns = (places.to(self.device, non_blocking=True) for places in (rows, columns))
        inputs = ids.clone()
        inputs[:, 0] = self.dec_id
        bridge = self.bridge
        hidden = bridge.write(inputs.to(self.device, non_blocking=True), seen)
        logits = self.mlm_head(hidden[rows, columns], bridge.word_embedding.weight)
        return F.cross_entropy(logits.float(), targets, label_smoothing=self.cfg.label_smoothing)

    def match_scores(self, images: Tensor, text_ids: Tensor) -> Tensor:
        """Image-text matching logits (B,): the mean over queries of `itm_head`'s second logit on the joint pass."""
        joint = self.joint_features(self.encode_image(images), text_ids)
        return self._match_logits(joint)[:, 1]

    def joint_features(self, image_tokens: Tensor, text_ids: Tensor) -> Tensor:
        """Return the queries' rows (B, Q, D) of a pass in which queries and text (B, T) meet."""
        queries = self._queries(len(text_ids))
        output: Tensor = self.bridge(queries, image_tokens, text_ids)
        return output[:, : queries.shape[1]]

    def _contrast(self, pairs: Comparison, groups: Tensor | None) -> dict[str, Tensor]:
        target = pairs.targets
        if groups is not None:
            target = pairs.positives / pairs.positives.sum(dim=1, keepdim=True)
        smoothing = self.cfg.label_smoothing
        loss = F.cross_entropy(pairs.to_text, target, label_smoothing=smoothing)
        loss = (loss + F.cross_entropy(pairs.to_image, target, label_smoothing=smoothing)) / 2
        return {
            "itc_loss": loss,
            "image_to_text": top1_accuracy(pairs.to_text, pairs.positives),
            "text_to_image": top1_accuracy(pairs.to_image, pairs.positives),
        }

    def _partners(self, count: int, groups: Tensor | None) -> Comparison:
        """Who belongs to whom, for `count` pairs on each process; all similarities zero."""
        columns = torch.arange(count * world_size(), device=self.device)
        targets = columns[rank() * count :][:count]
        if groups is None:
            positives = targets[:, None] == columns[None, :]
        else:
            positives = groups[:, None] == gather_features(groups)[None, :]
        nothing = torch.zeros(positives.shape, device=self.device)
        return Comparison(nothing, nothing, targets, positives)

    def _match_logits(self, joint: Tensor) -> Tensor:
        """(B, Q, D) → (B, 2) float32: the head's mean over the queries."""
        with in_float32(joint.device):
            logits: Tensor = self.itm_head(joint.float()).mean(dim=1)
        return logits

    def _image_features_of(self, queries: Tensor) -> Tensor:
        return unit(self.vision_proj, queries)

    def _encode(self, texts: list[str]) -> Tensor:
        """B captions → ids (B, T), on the CPU."""
        return torch.from_numpy(np.stack(self._rows(texts))).long()

    @cached_property
    def _rows(self) -> Remembered[npt.NDArray[np.int32]]:
        """Text → its ids (T,), padded."""
        tokenizer = self.tokenizer
        assert tokenizer is not None, "this model was built without a tokenizer"
        longest = self.cfg.max_txt_len

        def make(texts: list[str]) -> list[npt.NDArray[np.int32]]:
            ids = tokenizer(texts, padding="max_length", truncation=True, max_length=longest).input_ids
            return list(np.array(ids, dtype=np.int32))

        return Remembered(make)

    def _groups(self, batch: Batch) -> Tensor | None:
        if self.cfg.itc_positives == "same_caption":
            return torch.tensor([caption_number(text) for text in batch["text"]]).to(
                self.device, non_blocking=True
            )
        if self.cfg.itc_positives == "same_image":
            return torch.tensor(batch["image_id"]).to(self.device, non_blocking=True)
        return None
