"""What a caption is worth while a model is trained on it: CIDEr-D, and BLEU-4 where that is asked for.

The arithmetic is the scorer's, with the training split's references and document frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence

from bita.metrics.references import ReferenceSet
from bita.metrics.tokenizer import Tokenizer


class CaptionReward:
    """Rewards captions of a training split.

    Args:
        references: the captions of each image; those without a word are left out.
        bleu_weight: what BLEU-4 (0 to 1, of the caption alone, smoothed as the scorer does) counts beside CIDEr-D.

    Raises:
        UserError: an image has no reference with a word; a caption with more than plain words, and no Java.
    """

    def __init__(self, references: Sequence[Sequence[str]], bleu_weight: float = 0.0) -> None:
        self._tokenizer, self._bleu_weight = Tokenizer(), bleu_weight
        self._references = ReferenceSet(dict(enumerate(references)), self._tokenizer)

    def __call__(self, images: Sequence[int], captions: Sequence[Sequence[str]]) -> list[list[float]]:
        """The rewards of some captions of each image, named by its place in the references; an empty one gets 0."""
        tokens = iter(self._tokenizer.tokenize([caption for texts in captions for caption in texts]))
        return [
            [self._of(image, next(tokens)) for _ in texts]
            for image, texts in zip(images, captions, strict=True)
        ]

    def _of(self, image: int, tokens: str) -> float:
        reward = self._references.cider.score_of(image, tokens)
        if self._bleu_weight:
            reward += self._bleu_weight * self._bleu(image, tokens)
        return reward

    def _bleu(self, image: int, tokens: str) -> float:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer, cook_test

        cooked = self._references.bleu[image]
        scorer = BleuScorer(n=4)
        scorer.crefs, scorer.ctest = [cooked], [cook_test(tokens, cooked)]
        return float(scorer.compute_score(option="closest", verbose=0)[1][3][0])
