"""Self-critical training: captions that the model draws itself, weighted by what they are worth.

Rennie et al., "Self-critical sequence training for image captioning", CVPR 2017; the baseline of a caption is the mean
reward of the others drawn for its image (Luo, "A better variant of self-critical sequence training", 2020).

Shapes: I images, R captions drawn for each, T text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bita import compiling
from bita.batch import Batch, Written
from bita.config.parts import ScstConfig
from bita.config.schema import Config
from bita.datasets.captions import IDS_OF_A_DATASET, Split
from bita.metrics.reward import CaptionReward
from bita.models.language.decoder import IGNORED
from bita.models.language.generation import GenerationSettings
from bita.tasks.captioning import CaptioningTask


class ScstTask(CaptioningTask):
    """Raises the expected reward of drawn captions; evaluates like `captioning`."""

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.args: ScstConfig
        self.drawing = GenerationSettings(
            num_beams=1,
            use_nucleus_sampling=True,
            top_p=1.0,
            num_captions=self.args.samples,
            max_len=cfg.run.max_len,
            min_len=1,
            speed=cfg.run.speed,
        )
        self.reward: CaptionReward | None = None
        self.rows: dict[int, int] = {}
        """Number of an image in a batch → its place in the rewards' references."""

    def begin(self, datasets: Sequence[Split]) -> None:
        """Count the n-grams of the training references.

        Raises:
            UserError: a training set is stored as shards, or an image has no caption with a word.
        """
        references: list[Sequence[str]] = []
        for number, split in enumerate(datasets):
            data = split.for_evaluation()
            for image_id, captions in data.references.items():
                self.rows[number * IDS_OF_A_DATASET + data.numbers[image_id]] = len(references)
                references.append(captions)
        self.reward = CaptionReward(references, self.args.bleu_weight)

    def train_step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Draw captions for the batch's images, reward them, and learn from them: `loss`, and the mean `reward`."""
        assert self.reward is not None, "begin() comes first"
        captioner: Any = model.module if hasattr(model, "module") else model
        with torch.no_grad():
            prefix = captioner.prefix_of(captioner.batch_tokens(batch))
        images = len(prefix)
        generators = [torch.Generator().manual_seed(number) for number in batch["draw"]]
        with compiling.eager(self.cfg.run.compile):
            ids = captioner.write(prefix, self.drawing, generators)
        rows = [self.rows[number] for number in batch["image_id"][:: len(batch["image_id"]) // images]]
        rewards = torch.tensor(self.reward(rows, [captioner.decode(written) for written in ids]))
        advantages = (
            rewards - (rewards.sum(dim=1, keepdim=True) - rewards) / (self.args.samples - 1)
        ).flatten()
        tokens, labels = self._as_captions(captioner, [row for of_image in ids for row in of_image])
        written = Written(tokens, labels, advantages, self.args.caption_weight)
        output: dict[str, Tensor] = model({**batch, "written": written})
        return output | {"reward": rewards.mean().to(prefix.device)}

    def _as_captions(self, captioner: Any, written: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Drawn ids behind start and prompt → ids and labels (I·R, T), padded on the right."""
        prompt = captioner.tokens.prompt(captioner.cfg.prompt)
        length = len(prompt) + max(map(len, written))
        ids = torch.full((len(written), length), captioner.tokens.stop)
        labels = torch.full_like(ids, IGNORED)
        for row, tokens in enumerate(written):
            end = len(prompt) + len(tokens)
            ids[row, :end] = torch.tensor([*prompt, *tokens])
            labels[row, len(prompt) : end] = ids[row, len(prompt) : end]
        return ids, labels
