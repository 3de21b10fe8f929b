"""The chart of time and memory holds the numbers of its table."""

from __future__ import annotations

import pytest

from sparsemm.report.cost_charts import cost
from sparsemm.report.efficiency import Star


def rows(crafted):
    return [crafted.timing(length=512, kept=2**20, ms=3.0), crafted.timing(kept=2**19), crafted.timing("full")]


def test_every_quantity_is_in_order_of_the_prompt(crafted):
    held, peak, time, least, *_ = cost(rows(crafted))["data"]
    assert held["x"] == time["x"] == least["x"] == [128, 512]
    assert time["y"] == [2.0, 3.0] and least["y"] == [1.0, 1.5] and held["y"] == [0.5, 1.0]
    assert peak["y"] == pytest.approx([1000 / 2**20] * 2, abs=1e-6)
    assert (held["yaxis"], peak["yaxis"], time["yaxis"], least["yaxis"]) == ("y", "y2", "y3", "y3")


def test_plotly_takes_it_and_a_method_has_one_line_in_the_legend(crafted):
    made = cost(rows(crafted), [Star(True, "sparsemm", 512, 1.5), Star(False, "full", 128, 9.0)])
    crafted.drawable(made)
    assert [one["name"] for one in made["data"] if one["showlegend"]] == ["sparsemm", "full"]


def test_the_papers_points_lie_in_their_panels(crafted):
    *_, time, peak = cost(rows(crafted), [Star(True, "sparsemm", 512, 1.5), Star(False, "full", 128, 9.0)])["data"]
    assert (time["yaxis"], time["x"], time["y"]) == ("y3", [512], [1.5])
    assert (peak["yaxis"], peak["x"], peak["y"]) == ("y2", [128], [9.0])
