"""The page: valid structure, everything inside it, nothing hostile let through."""

from __future__ import annotations

from html.parser import HTMLParser

from sparsemm.report.page import bullets, figure, page, paragraph, section, table

VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def checked(text):
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


def test_hostile_text_stays_text():
    bad = '<script>alert("x")</script>'
    parts = (paragraph(bad), bullets([bad]), figure(b"x", bad, bad), table([bad], [[bad]]), section(bad, bad))
    found = checked(page(bad, [(bad, bad)], *parts))
    assert "script" not in {tag for tag, _ in found.seen}
    assert found.text.count(bad) >= 6


def test_everything_is_inside_the_file():
    found = checked(page("t", [("a", "b")], section("a", "b", figure(b"png", "what", "caption"))))
    for tag, attributes in found.seen:
        assert tag not in {"link", "script", "iframe"}
        assert attributes.get("src", "data:").startswith("data:") and attributes.get("href", "#").startswith("#")
    images = [attributes for tag, attributes in found.seen if tag == "img"]
    assert images and all(image["alt"] for image in images)
