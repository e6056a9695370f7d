"""The programs but for those of a room of their own, which are its `__main__.py`."""

from bita.cli.captioning import caption
from bita.cli.finishing import calibrate, export
from bita.cli.searching import search
from bita.cli.training import evaluate, main, run, train

__all__ = ["calibrate", "caption", "evaluate", "export", "main", "run", "search", "train"]
