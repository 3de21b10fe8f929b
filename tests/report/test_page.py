"""The page: valid structure, everything inside it, nothing hostile let through."""

from __future__ import annotations

import json

import pytest

from sparsemm.report.page import POLICY, bullets, chart, data, details, heading, page, pair, paragraph, section, table

SPEC = {"data": [], "layout": {"height": 300}}


def test_hostile_text_stays_text(crafted):
    bad = "\"'><script>alert('x')</script>&amp;"
    parts = (paragraph(bad, bad), bullets([bad]), chart(SPEC, bad, bad, bad), table([bad], [[bad, bad]], bad))
    found = crafted.checked(page(bad, [(bad, bad)], *parts, section(bad, bad), details(bad), heading(bad)))
    assert len(found.all("script")) == 6  # the chart, the library, and the page's own four
    assert found.text.count(bad) == 13
    assert found.all("figure")[0]["data-model"] == found.all("div")[0]["aria-label"] == bad
    assert found.all("section")[0]["id"] == bad and found.all("a")[0]["href"] == "#" + bad


def test_data_cannot_end_its_script():
    value = {"a": ["</script><!--", 1.5, None, "é"]}
    text = data(value, '"x')
    body = text.removeprefix('<script type="application/json" id="&quot;x">').removesuffix("</script>")
    assert "<" not in body and json.loads(body) == value
    with pytest.raises(ValueError):
        data(float("nan"))


def test_everything_is_inside_the_file(crafted):
    text = page("t", [("a", "b")], section("a", "b", chart(SPEC, "what", "caption"), pair("<p>1</p>", "<p>2</p>")))
    found = crafted.checked(text)
    for tag, attributes in found.seen:
        assert tag not in {"link", "iframe", "object", "embed", "base"} and "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    # The browser refuses what the page does not hold.
    assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in found.all("meta")
    assert "connect-src" not in POLICY and POLICY.startswith("default-src 'none'") and "http" not in POLICY
    assert "plotly.js" in found.scripts[-5] and "Plotly" in found.scripts[-4]


def test_phones_and_keyboards(crafted):
    text = page("t", [], table(["a", "b"], [["1", "2"]], "what this is"))
    found = crafted.checked(text)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in found.all("meta")
    # A region that scrolls can be reached and is named.
    (region,) = found.all("div")
    assert len(found.all("noscript")) == 1
    assert (region["tabindex"], region["role"], region["aria-label"]) == ("0", "region", "what this is")
    assert found.all("html") == [{"lang": "en"}] and [th["scope"] for th in found.all("th")] == ["col", "col", "row"]
    assert "focus-visible" in text and "overflow-x: auto" in text
