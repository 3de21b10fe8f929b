"""Colours and symbols: one for every method and one for every model, the same in every chart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from sparsemm.policies import METHODS as REGISTRY
from sparsemm.policies import SELECTORS, is_method, parts

INK, FAINT = "var(--ink)", "var(--faint)"  # page.css defines them for light and dark mode


@dataclass(frozen=True)
class Style:
    """How a method or a model is drawn, in plotly's terms, with a character for its symbol in a legend."""

    colour: str
    symbol: str
    glyph: str
    dash: str = "solid"

    def trace(self) -> dict[str, Any]:
        """Returns plotly's line and marker of a trace."""
        return {
            "line": {"color": self.colour, "dash": self.dash, "width": 1.8},
            "marker": {"color": self.colour, "symbol": self.symbol, "size": 8},
        }


# Mostly Okabe and Ito's palette, which colour-blind readers can distinguish.
METHODS = {
    "full": Style(INK, "circle-open", "○"),
    "sparsemm": Style("#D55E00", "circle", "●"),
    "snapkv": Style("#0072B2", "square-open", "□", "dash"),
    "pyramidkv": Style("#009E73", "triangle-up-open", "△", "dashdot"),
    "adakv": Style("#CC79A7", "diamond-open", "◇", "dot"),
    "random": Style("#999999", "x-thin-open", "✕", "longdash"),
    "streaming": Style("#8C6BB1", "triangle-down-open", "▽", "2px,2px"),
    "h2o": Style("#56B4E9", "cross-open", "✚", "longdashdot"),
    "sparsemm-adaptive": Style("#E69F00", "star", "★", "10px,2px"),
    "headkv": Style("#386641", "hourglass-open", "⧗", "dashdot"),
    "vl-cache": Style("#5C4D7D", "bowtie-open", "⋈", "dot"),
    "meda": Style("#9C6644", "triangle-left-open", "◁", "longdash"),
    "duo": Style("#467599", "hexagram-open", "✡", "longdashdot"),
    "fastv": Style("#AF4D98", "octagon-open", "⯃", "2px,2px"),
    "downsampled": Style("#6B705C", "asterisk-open", "✳", "10px,2px"),
    # These selectors are in params.yaml: they have colours that differ from their policy's, and symbols of their own.
    "sparsemm+peak": Style("#7B4FD0", "diamond", "◆"),
    "sparsemm+blend-echo": Style("#B8860B", "hexagon", "⬢", "10px,2px"),
    "snapkv+peak": Style("#2F7FBF", "square", "■", "dot"),
    "snapkv+random-visual": Style("#6E7F2E", "pentagon", "⬟", "longdash"),
    "snapkv+random-visual-per-head": Style("#9A5B5B", "triangle-down", "▼", "longdashdot"),
    "transformers": Style("#A6761D", "triangle-right-open", "▷", "dash"),
}
# Styles of methods without one of their own, in the order of the registry.
SPARE = (
    Style("#1B7A43", "hexagon-open", "⬡", "dash"),
    Style("#7A1F3D", "pentagon-open", "⬠", "dot"),
    Style("#4B4BA6", "star-open", "☆", "dashdot"),
)
# Colours of methods with another selector, in the order of the registry. Symbol and line are those of the policy.
SELECTED = (
    "#3D3D3D #B8336A #C1121F #F26A8D #2D6A4F #006D77 #5E548E #7F5539 #1D3557 #BC6C25 #6A994E #9D4EDD #3A86C8 "
    "#A44A3F #52796F #8D0801 #00509D #B08900 #4A4E69 #B56576 #2A9D8F #6F1D1B"
).split()
# Styles of settings that a study varies and that are not methods.
SETTINGS = (
    Style("#6A8EAE", "circle", "●"),
    Style("#B5651D", "square", "■", "dash"),
    Style("#59A14F", "triangle-up", "▲", "dashdot"),
    Style("#C2559D", "diamond", "◆", "dot"),
    Style("#C9A227", "triangle-down", "▼", "longdash"),
    Style("#3BA3A0", "star", "★", "longdashdot"),
    Style("#8A79AF", "pentagon", "⬟", "10px,2px"),
)
OTHER = Style("#7F7F7F", "circle-open", "○")
SYMBOLS = ("circle●", "square■", "diamond◆", "triangle-up▲", "triangle-down▼", "star★", "pentagon⬟", "hexagon⬢")


def method_style(method: str) -> Style:
    """Returns the style of a method: its own, else a spare one, or grey if it is not in the registry.

    A method with another selector has that selector's colour.
    """
    if "+" in method and method not in METHODS and is_method(method):
        policy, selector = parts(method)
        return replace(method_style(policy), colour=SELECTED[list(SELECTORS).index(str(selector)) % len(SELECTED)])
    new = [name for name in REGISTRY if name not in METHODS]
    return METHODS.get(method) or (SPARE[new.index(method) % len(SPARE)] if method in new else OTHER)


def method_label(method: str) -> str:
    """Returns the name of a method for legends and sentences: "sparsemm + peak" for "sparsemm+peak"."""
    return method.replace("+", " + ") if is_method(method) else method


def model_style(number: int) -> Style:
    """Returns the style of the model with this number; after eight models the colours repeat with other lines."""
    symbol = SYMBOLS[number % len(SYMBOLS)]
    return Style(f"var(--m{number % 8})", symbol[:-1], symbol[-1], ("solid", "dash", "dot")[number // 8 % 3])


def setting_styles(settings: Iterable[str]) -> dict[str, Style]:
    """Assigns a style to every setting of a study: a method's own style, else one that no other setting has."""
    names = list(dict.fromkeys(settings))
    others = [name for name in names if name not in METHODS and name not in REGISTRY and not is_method(name)]
    return {n: SETTINGS[others.index(n) % len(SETTINGS)] if n in others else method_style(n) for n in names}
