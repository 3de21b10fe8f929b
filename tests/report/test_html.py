"""The page: valid structure, everything inside it, nothing hostile let through."""

from __future__ import annotations

import json

import pytest

from sparsemm.report.charts import Chart, Panel, Point, Series
from sparsemm.report.html import (
    POLICY,
    SCRIPTS,
    bullets,
    chart,
    data,
    details,
    heading,
    page,
    pair,
    paragraph,
    pictures,
    section,
    table,
    tabs,
)
from sparsemm.report.style import Style
from sparsemm.statistics import Estimate
from tests.report import crafted

SPEC = {"panels": [], "columns": 1, "row": 300}


def test_hostile_text_stays_text():
    bad = "\"'><script>alert('x')</script>&amp;"
    series = [Series(bad, Style(bad, bad, "o"), [Point(bad, Estimate(0.5))]), Series("b", Style("c", "d", "e"), [])]
    drawn = Chart([Panel(bad, bad, bad, series, [bad])])
    parts = (paragraph(bad, bad), bullets([bad]), chart(drawn, bad, bad, bad), table([bad], [[bad, bad]], bad))
    parts += (tabs("t", [(bad, "1"), ("b", "2")]), pictures([{"image": bad, "text": bad}], bad))
    result = crafted.checked(page(bad, [(bad, bad)], "", *parts, section(bad, bad), details(bad, "x"), heading(bad)))
    assert len(result.all("script")) == 2 + len(SCRIPTS)  # the chart, the library, and the page's own
    assert result.text.count(bad) == 17
    assert result.all("figure")[0]["data-model"] == bad and result.all("section")[0]["id"] == bad
    assert result.all("img") == [{"src": bad, "alt": bad}]


def test_data_cannot_end_its_script():
    value = {"a": ["</script><!--", 1.5, None, "é"]}
    text = data(value, '"x')
    body = text.removeprefix('<script type="application/json" id="&quot;x">').removesuffix("</script>")
    assert "<" not in body and json.loads(body) == value
    with pytest.raises(ValueError):
        data(float("nan"))


def test_everything_is_inside_the_file():
    text = page("t", [("a", "b")], "", section("a", "b", chart(SPEC, "what", "caption"), pair("<p>1</p>", "<p>2</p>")))
    result = crafted.checked(text)
    for tag, attributes in result.seen:
        assert tag not in {"link", "iframe", "object", "embed", "base"} and "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    # The browser refuses what the page does not hold.
    assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in result.all("meta")
    assert "connect-src" not in POLICY and POLICY.startswith("default-src 'none'") and "http" not in POLICY
    assert "plotly.js" in result.scripts[-1 - len(SCRIPTS)] and "Plotly" in result.scripts[-len(SCRIPTS)]


def test_nothing_leaves_no_empty_piece():
    assert paragraph("") == bullets([""]) == details("what", "") == pictures([]) == tabs("t", []) == ""
    assert tabs("t", [("one", "<p>1</p>")]) == "<p>1</p>" and pair("<p>1</p>", "") == "<p>1</p>"


def test_tabs_are_labelled_and_belong_to_their_panels():
    result = crafted.checked(tabs("t", [("one", "1"), ("two", "2")]))
    buttons = result.all("button")
    panels = [one for one in result.all("div") if one.get("role") == "tabpanel"]
    assert [one["aria-controls"] for one in buttons] == [one["id"] for one in panels]
    assert [one["id"] for one in buttons] == [one["aria-labelledby"] for one in panels]


def test_phones_and_keyboards():
    text = page("t", [], "", table(["a", "b"], [["1", "2"]], "what this is"))
    result = crafted.checked(text)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in result.all("meta")
    # A region that scrolls can be reached and is named.
    (region,) = result.all("div")
    assert len(result.all("noscript")) == 1
    assert (region["tabindex"], region["role"], region["aria-label"]) == ("0", "region", "what this is")
    assert result.all("html") == [{"lang": "en"}] and [th["scope"] for th in result.all("th")] == ["col", "col", "row"]
