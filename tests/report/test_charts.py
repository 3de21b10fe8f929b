"""Charts hold the numbers of their tables, in words that plotly knows."""

from __future__ import annotations

import math

import pytest

from sparsemm.report import charts


def result(crafted, **more):
    evaluation = [crafted.row("full", "", 0.9)]
    for method in ("sparsemm", "snapkv"):
        evaluation += [crafted.row(method, b, v, (-0.2, 0.1)) for b, v in (("8", 0.3), ("16", 0.6))]
    return crafted.results(evaluation, **more)


def test_plotly_takes_every_chart(crafted):
    one = result(crafted)
    sparse = result(crafted, share=1.0)  # heads without any score have no logarithm
    made = [charts.heat_map(one.table), charts.sorted_scores([one, sparse]), charts.accuracy(one, "read")]
    for chart in [*made, charts.accuracy(crafted.results(), "read")]:
        crafted.drawable(chart)


def test_accuracy_has_values_intervals_and_the_full_cache(crafted):
    data = {trace.get("name"): trace for trace in charts.accuracy(result(crafted), "read")["data"]}
    assert list(data) == [None, "full cache", "sparsemm", "snapkv"] and data["full cache"]["y"] == [0.9, 0.9]
    mine = data["sparsemm"]
    assert mine["y"] == [0.3, 0.6] and mine["x"] == pytest.approx([8, 16], rel=0.03)
    assert mine["error_y"]["array"] == pytest.approx([0.1, 0.1]) == mine["error_y"]["arrayminus"]
    assert "B = 16: 0.600 [0.500, 0.700]" in mine["text"][1] and "1,024 bytes" in mine["text"][1]
    assert mine["x"][0] != data["snapkv"]["x"][0]  # side by side


def test_values_that_are_no_shares_are_not_cut_off(crafted):
    assert charts.accuracy(result(crafted), "read")["layout"]["yaxis"]["range"] == [-0.02, 1.03]
    cider = crafted.results([crafted.row("full", "", 1.4, task="textcaps_val"), crafted.row("snapkv", "8", 0.9)])
    assert "range" not in charts.accuracy(cider, "textcaps_val")["layout"]["yaxis"]


def test_the_heat_map_ranks_every_head(crafted):
    (cells,) = charts.heat_map(result(crafted, share=0.62).table)["data"]
    assert cells["z"][0][0] == pytest.approx(62) and cells["customdata"][0][0] == 1
    assert sorted(rank for row in cells["customdata"] for rank in row) == list(range(1, 21))


def test_sorted_scores_fall_and_their_sum_reaches_everything(crafted):
    times, summed, _ = charts.sorted_scores([result(crafted, share=0.62)])["data"]
    assert times["y"] == sorted(times["y"], reverse=True) and times["y"][0] == pytest.approx(20 * 0.62)
    assert summed["y"][0] == pytest.approx(62) and math.isclose(summed["y"][-1], 100)


def test_maps_beside_each_other_share_a_scale(crafted):
    (alone,), (beside,) = (charts.heat_map(crafted.table(0.3), most)["data"] for most in (None, 62.0))
    assert alone["zmax"] == pytest.approx(30) and beside["zmax"] == 62.0
