"""A forest draws every difference with its interval, groups one under the other."""

from __future__ import annotations

from sparsemm.report.forest import against_methods, of_models, said
from tests.report.studied import rows


def test_every_difference_has_its_interval_and_its_words(crafted):
    given = [row for key in ("m", "n") for row in rows(key=key) if row["against"]]
    half = len(given) // 2
    chart = of_models({"first": given[:half], "second": given[half:]})
    crafted.drawable(chart)
    assert [trace["name"] for trace in chart["data"]] == ["m", "n"]
    for trace, key in zip(chart["data"], ("m", "n"), strict=True):
        mine = [row for row in given if row["model"] == key]
        assert trace["x"] == [float(row["diff"]) for row in mine] and trace["text"] == list(map(said, mine))
        ends = [x + up for x, up in zip(trace["x"], trace["error_x"]["array"], strict=True)]
        assert all(abs(end - float(row["diff_ci_high"])) < 1e-5 for end, row in zip(ends, mine, strict=True))
    at = [place for trace in chart["data"] for place in trace["y"]]
    assert len(set(at)) == len(given) and at == sorted(at)
    low, high = chart["layout"]["yaxis"]["range"][::-1]
    assert low < min(at) and max(at) < high


def test_a_difference_says_what_it_is_between():
    row = next(row for row in rows() if row["against"])
    assert "m, read, B = 12<br>sparsemm minus snapkv: +0.200" in said(row) and said(row).endswith("], better")


def test_colours_may_be_what_is_compared_with(crafted):
    chart = against_methods({"m, read": [row for row in rows() if row["against"]]})
    crafted.drawable(chart)
    assert [trace["name"] for trace in chart["data"]] == ["snapkv"]
