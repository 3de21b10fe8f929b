"""A study's charts hold the numbers of its rows."""

from __future__ import annotations

import pytest

from sparsemm.report.study_charts import charts
from tests.report.studied import rows


def test_lines_rise_with_the_budget_and_the_full_cache_is_a_line_across(crafted):
    made = charts(rows(gain=0.2))
    assert list(made) == ["read"]
    crafted.drawable(made["read"])
    data = {trace["name"]: trace for trace in made["read"]["data"]}
    assert set(data) == {"snapkv", "sparsemm", "full"}
    values = [float(row["value"]) for row in rows() if row["setting"] == "sparsemm"]
    assert data["sparsemm"]["y"] == values and len(set(data["full"]["y"])) == 1
    assert data["sparsemm"]["error_y"]["array"][0] > 0
    assert data["sparsemm"]["x"] == pytest.approx([12, 24], rel=0.04) and data["sparsemm"]["x"] != data["snapkv"]["x"]


def test_what_has_neither_level_nor_budget_is_a_point_on_its_own_line(crafted):
    (chart,) = charts([row | {"budget": ""} for row in rows()]).values()
    crafted.drawable(chart)
    assert sorted(trace["y"][0] for trace in chart["data"]) == ["full", "snapkv", "sparsemm"]
    assert all(len(trace["x"]) == 1 for trace in chart["data"])


def test_one_budget_is_no_line(crafted):
    (chart,) = charts([row for row in rows() if row["budget"] != "24"]).values()
    crafted.drawable(chart)
    assert sorted(trace["y"][0] for trace in chart["data"]) == ["full", "snapkv", "sparsemm"]


def test_an_arm_alone_measures_the_other_panels(crafted):
    full = [row for row in rows() if row["setting"] == "full"]
    others = [
        row | {"condition": "here", "level": level, "budget": ""}
        for row, level in zip((r for r in rows() if r["setting"] == "sparsemm"), ("0.0", "0.5"), strict=True)
    ]
    made = charts([*full, *others])
    assert list(made) == ["read, here"]
    crafted.drawable(made["read, here"])
    assert [trace["name"] for trace in made["read, here"]["data"]] == ["sparsemm", "full"]


def test_a_task_with_one_arm_alone_is_still_drawn():
    (chart,) = charts([row for row in rows() if row["setting"] == "full"]).values()
    assert [trace["name"] for trace in chart["data"]] == ["full"]


def test_values_without_an_interval_have_no_bars():
    bare = [row | {"ci_low": "", "ci_high": "", "value": "7.5"} for row in rows()]
    (chart,) = charts(bare).values()
    assert chart["data"][0]["error_y"] == {"visible": False} and "range" not in chart["layout"]["yaxis"]
