"""Stages 1 and 2: contrastive alignment, and the caption loss; evaluation is by loss, and by retrieval in stage 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from bita import distributed
from bita.batch import Batch
from bita.models.base import BitaModel
from bita.models.contrast import similarity
from bita.tasks.base import Evaluation, Save, Task

if TYPE_CHECKING:
    from bita.datasets.captions import CaptionDataset

T = TypeVar("T")

RECALL_AT = (1, 5, 10)
ROWS = 64
"""Rows of the table of similarities that are looked at together."""


def rows_of(batch: Tensor) -> list[Tensor]:
    """Return the rows of a tensor, each by itself: a view is sent to other processes with the whole that it is of."""
    return [row.clone() for row in batch]


class PretrainTask(Task):
    """Trains on whatever loss the model has; the best epoch has the lowest validation loss (`run.best_by`)."""

    def evaluate(
        self, model: BitaModel, dataset: CaptionDataset, batches: Iterable[Batch], save: Save
    ) -> Evaluation:
        """The mean loss of a split, and for the contrastive model retrieval in both directions.

        Neither depends on the number of processes, except where matching is trained without contrast. Else the
        matching loss is left out, since its hard negatives are those of a batch. There are no predictions to save.
        """
        aligned = model.aligns
        scores = (
            self._contrastive(model, dataset, batches) if aligned else {"loss": _mean_loss(model, batches)}
        )
        return Evaluation(scores, self.quality(scores))

    def _contrastive(self, model: Any, dataset: CaptionDataset, batches: Iterable[Batch]) -> dict[str, float]:
        """Features are made by all processes; the main one compares them."""
        images: dict[int, Tensor] = {}
        written: list[tuple[float, int]] = []
        for batch in batches:
            features, loss = model.evaluate_batch(batch)
            images.update(zip(batch["image_id"], rows_of(features.cpu()), strict=True))
            written += [loss] if loss is not None else []
        captions = [
            (number, dataset.processors.eval_text(text))
            for number, image_id in sorted((dataset.numbers[n], n) for n in dataset.references)
            for text in dataset.references[image_id]
        ]
        distinct = list(dict.fromkeys(text for _, text in captions))
        own = distinct[distributed.rank() :: distributed.world_size()]
        texts = [
            model.text_features(model.tokenize(chunk)).cpu()
            for chunk in _chunks(own, self.cfg.run.batch_size_eval)
        ]
        parts = distributed.gather_objects((images, torch.cat(texts) if texts else None))

        def compare() -> dict[str, float]:
            merged = {image_id: feature for part, _ in parts for image_id, feature in part.items()}
            ids = torch.tensor(sorted(merged))
            image_features = torch.stack([merged[image_id] for image_id in ids.tolist()])
            of_text = torch.empty(len(distinct), image_features.shape[-1])
            for number, (_, part) in enumerate(parts):
                if part is not None:
                    of_text[number :: distributed.world_size()] = part
            place = {text: number for number, text in enumerate(distinct)}
            text_features = of_text[[place[text] for _, text in captions]]
            owners = torch.tensor([image_id for image_id, _ in captions])
            recall = retrieval(image_features, ids, text_features, owners, model.device)
            with distributed.alone():
                return {"loss": self._loss(model, image_features, ids, text_features, owners)} | recall

        scores = distributed.on_main(compare)
        if "itg" not in model.losses:
            return scores
        scores |= {"itc_loss": scores["loss"], "itg_loss": _weighted_mean(written)}
        return scores | {"loss": sum(model.losses[name] * scores[f"{name}_loss"] for name in ("itc", "itg"))}

    def _loss(self, model: Any, images: Tensor, ids: Tensor, texts: Tensor, owners: Tensor) -> float:
        """Contrastive loss of each image with its first caption, in batches of `run.batch_size_eval` by id."""
        firsts = torch.stack([(owners == image_id).nonzero()[0, 0] for image_id in ids])
        total = 0.0
        for places in _chunks(list(range(len(ids))), self.cfg.run.batch_size_eval):
            pair = images[places].to(model.device), texts[firsts[places]].to(model.device)
            total += float(model.contrast(*pair)["loss"]) * len(places)
        return total / len(ids)


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _mean_loss(model: BitaModel, batches: Iterable[Batch]) -> float:
    """Mean over the images, or the caption tokens, of all processes; the model sees its process's images only."""
    with distributed.alone():
        parts = [(float(model(batch)["loss"]), model.loss_weight(batch)) for batch in batches]
    return _weighted_mean(parts)


def _weighted_mean(own: list[tuple[float, int]]) -> float:
    parts = [pair for part in distributed.gather_objects(own) for pair in part]
    return sum(value * weight for value, weight in parts) / max(sum(weight for _, weight in parts), 1)


def retrieval(
    images: Tensor, ids: Tensor, texts: Tensor, owners: Tensor, device: torch.device | None = None
) -> dict[str, float]:
    """Recall@1, 5 and 10 in both directions, and their mean, as papers on RSICD and RSITMD count them.

    An image finds its captions when one of them is among the first k of all captions (`i2t`); each caption by itself
    looks for its image (`t2i`). Another image's caption is a wrong answer even where its words are the same; of equal
    similarities the one that comes first counts as the higher, so that captions of the same words change nothing from
    one number of processes to another.

    Args:
        images: (N, Q, E).
        ids: (N,) their image ids.
        texts: (M, E), every reference of every image.
        owners: (M,) the image ids that they describe.
        device: where similarities are computed.

    Returns:
        `i2t_recall@k`, `t2i_recall@k`: share of the images, or captions, that found; `mean_recall`: mean of the six.
    """
    distinct, place = texts.unique(
        dim=0, return_inverse=True
    )  # equal texts are equally similar, to the last bit
    distinct = distinct.to(device)
    scores = torch.cat([similarity(part.to(device), distinct).cpu()[:, place] for part in images.split(ROWS)])
    positives = ids[:, None] == owners[None, :]
    recall: dict[str, float] = {}
    for name, table, truth in (("i2t", scores, positives), ("t2i", scores.T, positives.T)):
        parts = zip(table.split(ROWS), truth.split(ROWS), strict=True)
        place_of = torch.cat([ranks(*part) for part in parts])
        recall |= {f"{name}_recall@{k}": float((place_of < k).float().mean()) for k in RECALL_AT}
    return recall | {"mean_recall": sum(recall.values()) / len(recall)}


def ranks(scores: Tensor, positives: Tensor) -> Tensor:
    """Return how many columns come before each row's best positive one: (A,).

    A column comes before another when its score is higher, or equal and it stands further left; what is not a number
    comes first, and is no positive.

    Args:
        scores: (A, B).
        positives: (A, B), at least one True in each row.
    """
    best = scores.masked_fill(~positives, -torch.inf).amax(dim=1, keepdim=True)
    equal = scores == best
    first = (equal & positives).int().argmax(dim=1, keepdim=True)
    behind = (scores < best) | (equal & (torch.arange(scores.shape[1]) >= first))
    return (~behind).sum(dim=1)
