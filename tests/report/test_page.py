"""The page: valid structure, everything inside it, nothing hostile let through."""

from __future__ import annotations

from sparsemm.report.page import bullets, details, figure, heading, page, paragraph, section, table


def test_hostile_text_stays_text(crafted):
    bad = "\"'><script>alert('x')</script>&amp;"
    parts = (paragraph(bad, bad), bullets([bad]), figure(b"x", bad, bad), table([bad], [[bad, bad]], bad))
    found = crafted.checked(page(bad, [(bad, bad)], *parts, section(bad, bad), details(bad), heading(bad)))
    assert "script" not in {tag for tag, _ in found.seen}
    assert found.text.count(bad) == 13
    assert found.all("img")[0]["alt"] == bad and found.all("section")[0]["id"] == bad
    assert found.all("a")[0]["href"] == "#" + bad


def test_everything_is_inside_the_file(crafted):
    found = crafted.checked(page("t", [("a", "b")], section("a", "b", figure(b"png", "what", "caption"))))
    for tag, attributes in found.seen:
        assert tag not in {"link", "script", "iframe"}
        assert attributes.get("src", "data:").startswith("data:") and attributes.get("href", "#").startswith("#")
    assert found.all("img")[0]["alt"] == "what"


def test_phones_and_keyboards(crafted):
    text = page("t", [], table(["a", "b"], [["1", "2"]], "what this is"))
    found = crafted.checked(text)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in found.all("meta")
    # A region that scrolls can be reached and is named.
    (region,) = found.all("div")
    assert (region["tabindex"], region["role"], region["aria-label"]) == ("0", "region", "what this is")
    assert found.all("html") == [{"lang": "en"}] and [th["scope"] for th in found.all("th")] == ["col", "col", "row"]
    assert "focus-visible" in text and "overflow-x: auto" in text
