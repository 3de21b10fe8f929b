"""How every method looks, the same in PNG figures and in the page's charts."""

from __future__ import annotations

from collections.abc import Iterable
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

    def for_matplotlib(self) -> dict[str, Any]:
        """Arguments of a line with markers in a PNG figure."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.line,
            "fillstyle": "none" if self.symbol.endswith("-open") else "full",
        }

    def for_plotly(self) -> dict[str, Any]:
        """The same for a trace of a chart."""
        return {
            "line": {"color": self.page_colour, "dash": self.dash, "width": 1.8},
            "marker": {"color": self.page_colour, "symbol": self.symbol, "size": 8},
        }


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


def told_apart(settings: Iterable[str]) -> dict[str, Style]:
    """A style for every setting of a study: its own where it is a method, else one that no other setting has.

    Where there are more settings than styles, styles repeat.
    """
    wanted = list(dict.fromkeys(settings))
    free = [given for name, given in STYLES.items() if name not in {"full", *wanted}] or [OTHER]
    others = [name for name in wanted if name not in STYLES]
    return {name: STYLES[name] if name in STYLES else free[others.index(name) % len(free)] for name in wanted}
