"""Charts hold the numbers of their tables, in words that plotly knows."""

from __future__ import annotations

import json
import math

import plotly.graph_objects
import pytest

from sparsemm.report import charts


def result(crafted, **more):
    evaluation = [crafted.row("full", "", 0.9)]
    for method in ("sparsemm", "snapkv"):
        evaluation += [crafted.row(method, b, v, (-0.2, 0.1)) for b, v in (("8", 0.3), ("16", 0.6))]
    profile = [crafted.timing(length=512, kept=2**20, ms=3.0), crafted.timing(kept=2**19), crafted.timing("full")]
    return crafted.results(evaluation, profile, **more)


def plain(value):
    """The figure with the page's colours looked up, as the page does before plotly sees them."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return "black" if isinstance(value, str) and value.startswith("var(--") else value


def test_plotly_takes_every_chart(crafted):
    one = result(crafted)
    sparse = result(crafted, share=1.0)  # heads without any score have no logarithm
    made = [charts.heat_map(one), charts.sorted_scores([one, sparse]), charts.accuracy(one, "read"), charts.cost(one)]
    for chart in [*made, charts.accuracy(crafted.results(), "read")]:
        json.dumps(chart, allow_nan=False)
        plotly.graph_objects.Figure(plain(chart))  # raises on a word it does not know


def test_accuracy_has_values_intervals_and_the_full_cache(crafted):
    data = {trace.get("name"): trace for trace in charts.accuracy(result(crafted), "read")["data"]}
    assert list(data) == [None, "full cache", "sparsemm", "snapkv"] and data["full cache"]["y"] == [0.9, 0.9]
    mine = data["sparsemm"]
    assert mine["y"] == [0.3, 0.6] and mine["x"] == pytest.approx([8, 16], rel=0.03)
    assert mine["error_y"]["array"] == pytest.approx([0.1, 0.1]) == mine["error_y"]["arrayminus"]
    assert "B = 16: 0.600 [0.500, 0.700]" in mine["text"][1] and "1,024 bytes" in mine["text"][1]
    assert mine["x"][0] != data["snapkv"]["x"][0]  # side by side


def test_the_heat_map_ranks_every_head(crafted):
    (cells,) = charts.heat_map(result(crafted, share=0.62))["data"]
    assert cells["z"][0][0] == pytest.approx(62) and cells["customdata"][0][0] == 1
    assert sorted(rank for row in cells["customdata"] for rank in row) == list(range(1, 21))


def test_sorted_scores_fall_and_their_sum_reaches_everything(crafted):
    times, summed, _ = charts.sorted_scores([result(crafted, share=0.62)])["data"]
    assert times["y"] == sorted(times["y"], reverse=True) and times["y"][0] == pytest.approx(20 * 0.62)
    assert summed["y"][0] == pytest.approx(62) and math.isclose(summed["y"][-1], 100)


def test_cost_is_in_order_of_the_prompt(crafted):
    time, size, *_ = charts.cost(result(crafted))["data"]
    assert time["x"] == [128, 512] and time["y"] == [2.0, 3.0] and size["y"] == [0.5, 1.0]
