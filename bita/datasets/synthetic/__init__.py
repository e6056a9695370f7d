"""The embedded dataset `synthetic_caption`: drawn aerial scenes with five captions each, and their facts.

Needs numpy and Pillow only. `generate` writes a dataset; `facts_in_caption` and `score_facts` tell how much of what
a scene shows a predicted caption gets right.
"""

from bita.datasets.synthetic.captions import facts_in_caption, five_captions, typical_caption
from bita.datasets.synthetic.facts import Facts
from bita.datasets.synthetic.measure import load_facts, oracle_captions, score_facts
from bita.datasets.synthetic.scenes import SCENES, draw_scene
from bita.datasets.synthetic.writer import generate

__all__ = [
    "SCENES",
    "Facts",
    "draw_scene",
    "facts_in_caption",
    "five_captions",
    "generate",
    "load_facts",
    "oracle_captions",
    "score_facts",
    "typical_caption",
]
