"""Every method can be told apart, in print and on the screen."""

from __future__ import annotations

import pytest
from matplotlib.lines import Line2D
from plotly.graph_objects import Scatter

from sparsemm.policies import METHODS
from sparsemm.report.styles import INK, OTHER, STYLES, style, told_apart


def test_every_method_has_its_own_colour_marker_and_symbol():
    assert set(METHODS) | {"transformers"} == set(STYLES)
    for name in ("colour", "marker", "symbol"):
        assert len({getattr(one, name) for one in STYLES.values()}) == len(STYLES)
    assert style("full").page_colour == INK and style("snapkv").page_colour == style("snapkv").colour
    assert style("another") == OTHER


@pytest.mark.parametrize("method", STYLES)
def test_both_libraries_know_the_words(method):
    one = style(method)
    Line2D([0], [0], color=one.colour, marker=one.marker, linestyle=one.line)
    Scatter(line={"dash": one.dash}, marker={"symbol": one.symbol})


def test_settings_of_a_study_are_told_apart():
    settings = ["top", "snapkv", "full", "top", "same layers", "window"]
    found = told_apart(settings)
    assert list(found) == list(dict.fromkeys(settings)) and found["snapkv"] == STYLES["snapkv"]
    assert len({one.colour for one in found.values()}) == len(found)
    assert len(told_apart(f"setting {n}" for n in range(40))) == 40
    assert told_apart(STYLES) == STYLES and told_apart([*STYLES, "more"])["more"] == OTHER
