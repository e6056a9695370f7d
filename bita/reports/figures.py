"""Plots as SVG inside a page: they take the page's colours, so that they fit a dark page and a printed one alike.

Each is a text that begins with `<svg`. The same values give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bita.inference.confidence import Bin, Values

INK, LINE, FIRST, SECOND = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
STYLES = {INK: "currentColor", LINE: "var(--line)", FIRST: "var(--first)", SECOND: "var(--second)"}
"""Colours that stand in a drawing → what the page calls them."""
COLOURS = (FIRST, SECOND, INK)
SIZE = (3.6, 2.4)
"""Of a plot, in inches."""

LEAST_SHARE = 0.02
"""Of the images: the mean quality of fewer says nothing."""

Curve = tuple[Sequence[float], Sequence[float]]


def lengths(captions: Mapping[str, Sequence[str]]) -> str:
    """Share of captions of each number of words.

    Args:
        captions: name → captions.
    """
    counts = {name: [len(text.split()) for text in texts] for name, texts in captions.items()}
    longest = max((n for found in counts.values() for n in found), default=1)
    with plot() as (figure, axes):
        for colour, (name, found) in zip(COLOURS, counts.items(), strict=False):
            shares = np.bincount(found, minlength=longest + 2) / max(len(found), 1)
            axes.step(range(len(shares)), shares, where="mid", color=colour, label=name)
        axes.set(xlabel="words", ylabel="share of captions")
        axes.legend()
        return svg(figure, "How many words captions have")


def curves(title: str, named: Mapping[str, Curve]) -> str:
    """Curves over optimizer steps.

    Args:
        title: what they show.
        named: name of a curve → steps and values.
    """
    with plot() as (figure, axes):
        for k, (name, (steps, values)) in enumerate(named.items()):
            colour, dash = COLOURS[k % len(COLOURS)], ("-", "--", ":")[k // len(COLOURS) % 3]
            axes.plot(
                steps,
                values,
                dash,
                color=colour,
                label=name,
                marker="o" if len(steps) < 8 else None,
                markersize=3,
            )
        axes.set(xlabel="optimizer step", title=title)
        if len(named) > 1:
            axes.legend()
        return svg(figure, title)


def reliability(bins: Sequence[Bin]) -> str:
    """Mean quality of captions of a like confidence, against that confidence."""
    expected, found = [part.confidence for part in bins], [part.quality for part in bins]
    with plot() as (figure, axes):
        top = max([*expected, *found, 1e-9]) * 1.05
        axes.plot([0, top], [0, top], color=LINE)
        axes.plot(expected, found, color=FIRST, marker="o", markersize=4)
        axes.set(xlabel="confidence: the quality to expect", ylabel="quality", xlim=(0, top), ylim=(0, top))
        return svg(figure, "Quality against confidence")


def coverage(name: str, kept: Mapping[str, tuple[Values, Values]]) -> str:
    """Mean quality of the captions that are kept, against how many are.

    Args:
        name: of the quality.
        kept: what is kept first → shares that are kept, mean qualities; those of the whole split come last.
    """
    with plot() as (figure, axes):
        for colour, (title, (shares, means)) in zip(COLOURS, kept.items(), strict=False):
            enough = shares >= LEAST_SHARE
            axes.plot(shares[enough], means[enough], color=colour, label=title)
        axes.axhline(next(iter(kept.values()))[1][-1], color=INK, linestyle=":", label="all")
        axes.set(xlabel="share of images kept", ylabel=f"mean {name}", xlim=(0, 1))
        axes.legend()
        return svg(figure, f"Mean {name} of the captions that are kept")


@contextmanager
def plot() -> Iterator[tuple[Figure, Axes]]:
    """Axes in the page's colours."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    clear = ("figure.facecolor", "axes.facecolor", "legend.facecolor", "legend.edgecolor")
    style: Any = dict.fromkeys(inked, INK) | dict.fromkeys(clear, "none")
    style |= {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "lines.linewidth": 1.4,
    }
    style |= {"axes.grid": True, "grid.color": LINE, "grid.linewidth": 0.6}
    style |= {"font.family": "sans-serif", "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8}
    style |= {"svg.fonttype": "none", "svg.hashsalt": "bita"}
    with rc_context(style):
        figure = Figure(figsize=SIZE, layout="constrained")
        yield figure, figure.add_subplot()


def svg(figure: Figure, label: str) -> str:
    """Return a figure as `<svg …>`, with what it shows for readers who do not see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    for colour, name in STYLES.items():
        text = text.replace(colour, name)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # names that nothing asks for, the same in every figure
    shown = f'role="img" aria-label="{escape(label)}"'
    return re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', rf'style="width: \1pt" {shown}', text, count=1)
