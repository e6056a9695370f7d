"""How many facts of the scenes a set of captions gets right."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path

from bita.datasets.synthetic.captions import facts_in_caption, typical_caption
from bita.datasets.synthetic.facts import Facts
from bita.errors import UserError
from bita.records import Id, ordered


def load_facts(path: Path) -> dict[Id, Facts]:
    """Read a dataset's `facts.json`: image id → facts.

    Raises:
        UserError: the file is missing or is not what `generate` wrote.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {int(image_id): Facts(**facts) for image_id, facts in content.items()}
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); generate the synthetic dataset anew"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a facts file of the synthetic dataset; generate it anew") from error


def score_facts(predictions: Mapping[Id, str], facts: Mapping[Id, Facts]) -> dict[str, float]:
    """Share of images whose caption states a fact rightly, fact by fact.

    Args:
        predictions: image id → caption.
        facts: image id → facts; others than the predicted ones may be there.

    Returns:
        `kind`, `count`, `colour`, `arrangement`, `surroundings`: each among the predicted images that have
        such a fact (0 where none has).

    Raises:
        UserError: a predicted image has no facts.
    """
    missing = predictions.keys() - facts.keys()
    if missing:
        raise UserError(
            f"no facts for image {ordered(missing)[0]}: predictions and facts.json are of different datasets"
        )
    stated = {image_id: facts_in_caption(caption) for image_id, caption in predictions.items()}
    shares = {}
    for name in (field.name for field in fields(Facts)):
        hits = [
            getattr(said, name) == truth
            for image_id, said in stated.items()
            if (truth := getattr(facts[image_id], name)) is not None
        ]
        shares[name] = sum(hits) / len(hits) if hits else 0.0
    return shares


def oracle_captions(facts: Mapping[Id, Facts], image_ids: Iterable[Id]) -> dict[Id, str]:
    """Return the true facts of each image in the typical sentence of its kind."""
    return {image_id: typical_caption(facts[image_id]) for image_id in image_ids}
