"""A study's figure is a picture of its rows, the same bytes for the same rows."""

from __future__ import annotations

import pytest

from sparsemm.report.study_charts import charts
from sparsemm.report.study_figures import MOST_PANELS, drawn, figure_of, panels
from tests.report.studied import rows


@pytest.mark.parametrize("more", [{}, {"budget": ""}, {"level": "0.5"}, {"ci_low": "", "ci_high": ""}])
def test_pictures_follow_their_rows(more):
    made = ([row for row in rows(gain=gain) if row["budget"] != "24"] for gain in (0.2, 0.2, -0.2))
    one, again, other = ([row | more for row in mine] for mine in made)
    assert drawn("m", one) == drawn("m", again) != drawn("m", other)


def test_of_many_panels_the_first_are_drawn():
    many = [row | {"condition": f"condition {n}"} for n in range(MOST_PANELS + 3) for row in rows()]
    assert [panel.condition for panel in panels(many)] == [f"condition {n}" for n in range(MOST_PANELS)]


def test_an_arm_compared_twice_is_drawn_once():
    (panel,) = panels([*rows(), *(row | {"against": "random"} for row in rows())])
    assert len(panel.rows) == len(panels(rows())[0].rows)


@pytest.mark.parametrize(
    ("study", "more", "across"),
    [
        ("masking", {"level": "0.5"}, "share of heads switched off"),
        ("cost", {"level": "128"}, "prompt length, tokens"),
        ("parts", {}, "B, slots per KV head (log)"),
    ],
)
def test_axes_are_named_as_in_the_chart(study, more, across):
    made = [row | more for row in rows(study)]
    if more:  # a line needs more than one place
        made += [row | {"level": "0.7"} for row in made]
    axes = figure_of("m", made).axes[0]
    layout = charts(made)["read"]["layout"]
    assert axes.get_xlabel() == layout["xaxis"]["title"]["text"] == across
    assert axes.get_ylabel() == layout["yaxis"]["title"]["text"] == "accuracy"
