"""How every method looks, the same in PNG figures and in the page's charts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

INK = "var(--ink)"  # black on paper; the page turns it with its colour scheme


@dataclass(frozen=True)
class Style:
    """One method's line.

    Attributes:
        colour: of Okabe and Ito's palette where it lasts, which colour-blind readers tell apart.
        marker, line: in matplotlib's words.
        symbol, dash: the same in plotly's.
    """

    colour: str
    marker: str
    symbol: str
    line: Any = "-"
    dash: str = "solid"

    @property
    def page_colour(self) -> str:
        """Colour in the page, where black follows the colour scheme."""
        return INK if self.colour == "#000000" else self.colour


STYLES = {
    "full": Style("#000000", ".", "circle-open"),
    "sparsemm": Style("#D55E00", "o", "circle"),
    "snapkv": Style("#0072B2", "s", "square-open", "--", "dash"),
    "pyramidkv": Style("#009E73", "^", "triangle-up-open", "-.", "dashdot"),
    "adakv": Style("#CC79A7", "D", "diamond-open", ":", "dot"),
    "random": Style("#999999", "x", "x-thin-open", (0, (6, 2)), "longdash"),
    "streaming": Style("#8C6BB1", "v", "triangle-down-open", (0, (1, 1)), "2px,2px"),
    "h2o": Style("#56B4E9", "P", "cross-open", (0, (4, 1, 1, 1, 1, 1)), "longdashdot"),
    "sparsemm-adaptive": Style("#E69F00", "*", "star", (0, (8, 1)), "10px,2px"),
    "transformers": Style("#A6761D", ">", "triangle-right-open", "--", "dash"),
}
OTHER = Style("#7F7F7F", ".", "circle-open")


def style(method: str) -> Style:
    """The style of a method; grey for one that has none of its own."""
    return STYLES.get(method, OTHER)
