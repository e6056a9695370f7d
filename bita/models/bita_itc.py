"""Stage 1: query tokens and captions are aligned by contrast (BITA, section III-B; BLIP-2's contrastive loss).

Shapes: B images and captions of this process, W processes, Q query tokens, D hidden width, E embedding width,
T = `max_txt_len`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bita.batch import Batch
from bita.distributed import gather_features, rank
from bita.models.base import BitaModel
from bita.models.bridge import LAYER_NORM_EPS, PAD_ID, init_bert
from bita.models.tokenizers import load_tokenizer
from bita.schema import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class MaskedLanguageHead(nn.Module):
    """BERT's word predictor, carried along in published checkpoints; its output weights are the word embedding."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.apply(init_bert)


class BootstrapHead(nn.Module):
    """Mean image token and mean word embedding, side by side: the shortest way from a caption to the encoder."""

    def __init__(self, image_width: int, text_width: int, embed_dim: int) -> None:
        super().__init__()
        self.image_proj = nn.Linear(image_width, embed_dim)
        self.text_proj = nn.Sequential(
            nn.LayerNorm(text_width),
            nn.Linear(text_width, 2 * embed_dim),
            nn.GELU(),
            nn.Linear(2 * embed_dim, embed_dim),
        )

    def forward(self, image_tokens: Tensor, words: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C), word embeddings (B, T, D), which of them count (B, T) → (B, 1, E), (B, E), unit length."""
        weights = present.float()[..., None]
        mean = (words * weights).sum(dim=1) / weights.sum(dim=1)
        image = F.normalize(self.image_proj(image_tokens.mean(dim=1, keepdim=True)), dim=-1)
        return image, F.normalize(self.text_proj(mean), dim=-1)


class BitaITC(BitaModel):
    """The stage-1 model, arch `bita_former`.

    Args:
        cfg: sizes and options.
        tokenizer: BERT's, with [DEC] added; None when only token ids will be given.
    """

    def __init__(self, cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        vocab_size = cfg.text_vocab_size if tokenizer is None else len(tokenizer)
        super().__init__(cfg, vocab_size=vocab_size)
        width = cfg.bridge_size.hidden_size
        self.tokenizer = tokenizer
        self.vision_proj = nn.Linear(width, cfg.embed_dim)
        self.text_proj = nn.Linear(width, cfg.embed_dim)
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.itm_head = nn.Linear(width, 2)
        self.mlm_head = MaskedLanguageHead(width, vocab_size)
        self.bootstrap = None
        if cfg.itc_bootstrap_weight:
            self.bootstrap = BootstrapHead(self.visual_encoder.width, width, cfg.embed_dim)
        self.itm_head.requires_grad_(False)  # in published checkpoints, without a loss here
        self.mlm_head.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: ModelConfig, load_weights: bool = True) -> Self:
        """Build with the tokenizer that the configuration names, and fresh weights.

        Raises:
            ConfigError: the tokenizer is not there.
        """
        return cls(cfg, load_tokenizer("model.text_tokenizer", cfg.text_tokenizer, load_weights, dec=True))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The contrastive loss of a batch, and the shares of images and captions that found their partner."""
        tokens, groups = self.encode_image(batch["image"]), self._groups(batch)
        text_ids = self.tokenize(batch["text"])
        output = self.contrast(self.project(tokens), self.text_features(text_ids), groups)
        if self.bootstrap is not None:
            means = self.bootstrap(tokens, self.bridge.word_embedding(text_ids), text_ids != PAD_ID)
            extra = self.contrast(means[0], means[1], groups)
            output["loss"] = output["loss"] + self.cfg.itc_bootstrap_weight * extra["loss"]
            output["bootstrap_loss"] = extra["loss"].detach()
        return output

    def tokenize(self, texts: list[str]) -> Tensor:
        """B captions → ids (B, T) on the model's device, always padded to T, since padding takes part."""
        assert self.tokenizer is not None, "this model was built without a tokenizer"
        ids: Tensor = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.cfg.max_txt_len, return_tensors="pt"
        ).input_ids
        return ids.to(self.device, non_blocking=True)

    def image_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, Q, E), unit length."""
        return self.project(self.encode_image(images))

    def project(self, image_tokens: Tensor) -> Tensor:
        """(B, N, C) → (B, Q, E), unit length."""
        return F.normalize(self.vision_proj(self.query_image(image_tokens)), dim=-1)

    def text_features(self, text_ids: Tensor) -> Tensor:
        """(B, T) → (B, E), unit length."""
        return F.normalize(self.text_proj(self.bridge(text_ids=text_ids)[:, 0]), dim=-1)

    def contrast(self, images: Tensor, texts: Tensor, groups: Tensor | None = None) -> dict[str, Tensor]:
        """Contrastive loss, both directions averaged, against the features of all processes.

        Args:
            images: (B, Q, E).
            texts: (B, E).
            groups: (B,) int64; pairs with equal numbers are right answers for each other. None: only its own.
        """
        all_images = gather_features(images, with_grad=self.cfg.itc_gather_grad)
        all_texts = gather_features(texts, with_grad=self.cfg.itc_gather_grad)
        to_text = similarity(images, all_texts) / self.temp
        to_image = similarity(all_images, texts).T / self.temp
        first = rank() * len(texts) if len(all_texts) > len(texts) else 0
        own = first + torch.arange(len(texts), device=texts.device)
        if groups is None:
            target: Tensor = own
        else:
            same = (groups[:, None] == gather_features(groups, with_grad=False)[None, :]).float()
            target = same / same.sum(dim=1, keepdim=True)
        smoothing = self.cfg.label_smoothing
        loss = F.cross_entropy(to_text, target, label_smoothing=smoothing)
        loss = (loss + F.cross_entropy(to_image, target, label_smoothing=smoothing)) / 2
        return {
            "loss": loss,
            "image_to_text": (to_text.argmax(dim=1) == own).float().mean().detach(),
            "text_to_image": (to_image.argmax(dim=1) == own).float().mean().detach(),
        }

    def match_scores(self, images: Tensor, text_ids: Tensor) -> Tensor:
        """Image-text matching logits (B,): the mean over queries of `itm_head`'s second logit on the joint pass."""
        joint = self.joint_features(self.encode_image(images), text_ids)
        score: Tensor = self.itm_head(joint)[..., 1].mean(dim=1)
        return score

    def joint_features(self, image_tokens: Tensor, text_ids: Tensor) -> Tensor:
        """The queries' rows (B, Q, D) of a pass in which queries and text (B, T) meet."""
        queries = self.query_tokens.expand(len(text_ids), -1, -1)
        output: Tensor = self.bridge(queries, image_tokens, text_ids)
        return output[:, : queries.shape[1]]

    def _groups(self, batch: Batch) -> Tensor | None:
        if self.cfg.itc_positives == "same_caption":
            return torch.tensor([caption_number(text) for text in batch["text"]], device=self.device)
        if self.cfg.itc_positives == "same_image":
            return torch.tensor(batch["image_id"], device=self.device)
        return None


def caption_number(text: str) -> int:
    """A 63-bit number that equal captions share, on every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def similarity(images: Tensor, texts: Tensor) -> Tensor:
    """(A, Q, E), (B, E) → (A, B): the best of an image's queries for each text, as one matrix product."""
    scores = images.flatten(0, 1) @ texts.T
    return scores.unflatten(0, images.shape[:2]).amax(dim=1)
