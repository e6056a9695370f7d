"""BITA: remote-sensing image captioning with bootstrapped interactive image-text alignment.

import bita
bita.load().caption("image.jpg")                                # the model that the package brings
bita.load("output/quickstart/caption").caption("image.jpg")     # one's own
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bita.version import VERSION

if TYPE_CHECKING:
    from bita.inference.captioner import Captioner

__version__ = VERSION


def load(
    run: str | Path | None = None,
    device: str = "auto",
    quantize: str = "none",
    stage1: str | Path | None = None,
    prompt: str | None = None,
) -> Captioner:
    """Load a captioning model from a run, its output folder (then its latest run), or a checkpoint in it.

    Args:
        run: its folder; None: the model that the package brings.
        device: `auto`, `cpu` or `cuda`.
        quantize: `int8` or `int4` keep the language model's weights in 8 bit (torchao) or 4 bit (bitsandbytes).
        stage1: the stage-1 run that compares images and texts for it; None: the one that it grew from.
        prompt: what captions begin with, and do not repeat; None: the run's own.

    Raises:
        UserError: there is no checkpoint of a captioning model.
    """
    from bita.inference.captioner import Captioner
    from bita.packages import BOX

    return Captioner.load(BOX if run is None else run, device, quantize, stage1, prompt)
