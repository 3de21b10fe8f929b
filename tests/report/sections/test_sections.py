"""The whole page of crafted results: complete, escaped, with links that lead somewhere."""

from __future__ import annotations

import json

import pytest

from sparsemm.params import parse_params
from sparsemm.report import sections
from sparsemm.report.page import page
from sparsemm.report.results import without_hollow
from sparsemm.report.short import TOO_FEW

PARAMS = """
models: {}
datasets:
  c: {source: synthetic, split: calibration, samples: 4}
  e: {source: synthetic, split: evaluation, samples: 4}
chase: {dataset: c}
allocate: {budgets: [8], window: 4}
evaluate: {dataset: e, samples: 4, methods: [full, sparsemm]}
profile: {methods: [full], budget: 8, lengths: [128]}
"""


@pytest.fixture
def build(crafted):
    """The page of some results, checked."""

    def make(results, seen="it was not asked for"):
        material = sections.Material(parse_params(PARAMS), results, {result.key: seen for result in results})
        contents, parts = sections.written(material)
        return crafted.checked(page("t", contents, *parts))

    return make


def evaluated(crafted, against, **more):
    rows = [crafted.row("full", "", 0.9), crafted.row("sparsemm", "8", 0.6, full=(-0.4, -0.2))]
    rows.append(crafted.row("snapkv", "8", 0.5, against, full=(-0.5, -0.3)))
    return crafted.results(rows, [crafted.timing(), crafted.timing("snapkv", ms=2.1)], **more)


@pytest.mark.parametrize(
    ("against", "word", "counts"),
    [
        ((-0.2, -0.1), "better", "1 / 0 / 0"),
        ((0.1, 0.2), "worse", "0 / 0 / 1"),
        ((-0.1, 0.1), "no difference shown", "0 / 1 / 0"),
    ],
)
def test_the_page_says_what_the_table_says(crafted, build, against, word, counts):
    found = build([evaluated(crafted, against)])
    assert f"sparsemm against snapkv: {word} at B = 8" in found.text and counts in found.text
    assert f"{word} in 1" in found.text
    for other in {"better", "worse", "no difference shown"} - {word}:
        assert f"sparsemm against snapkv: {other}" not in found.text


def charts(found):
    """Every chart of the page: plotly's data and layout."""
    made = [json.loads(text) for text in found.scripts if text.startswith("{")]
    return [one for one in made if "layout" in one]


def test_tables_begin_with_what_names_a_row_then_differences_and_verdicts(crafted, build):
    found = build([evaluated(crafted, (-0.2, -0.1))])
    assert "methodminus sparsemmsparsemm isminus fullagainst fullaccuracy" in found.text
    assert "snapkv, B = 8-0.150 [-0.200, -0.100]better-0.400 [-0.500, -0.300]worse0.500" in found.text
    assert "model and taskenough from B =vs snapkvm, readnone1 / 0 / 0" in found.text
    assert "sparsemm, B = 16, 128 tokens2.00" in found.text


def test_every_chart_is_in_the_page_and_has_words(crafted, build):
    found = build([evaluated(crafted, (-0.2, -0.1))])
    plots = [one for one in found.all("div") if one.get("class") == "plot"]
    assert len(charts(found)) == len(plots) == 4  # curves, heat map, accuracy, cost
    assert all(one["role"] == "img" and len(one["aria-label"]) > 30 for one in plots)
    assert [one["data-model"] for one in found.all("figure") if "data-model" in one] == ["m"]


def test_the_page_reads_like_results(crafted, build):
    """What was found, how, then the evidence, its cost and its limits; the contents follow."""
    found = build([evaluated(crafted, (-0.2, -0.1))], [crafted.looking()])
    order = ["found", "method", "accuracy", "heads", "explorer", "cost", "limits"]
    assert [one["id"] for one in found.all("section")] == order
    assert [one["href"] for one in found.all("a")] == ["#" + anchor for anchor in order]


def test_a_section_without_anything_to_say_is_left_out(crafted, monkeypatch):
    empty = sections.Section("empty", "Empty", "Nothing here", lambda material: [])
    more = sections.Section("more", "More", "Something else", lambda material: ["<p>else</p>"])
    monkeypatch.setattr(sections, "SECTIONS", (empty, more))
    contents, parts = sections.written(sections.Material(parse_params(PARAMS), [], {}))
    assert contents == [("more", "More")] and len(parts) == 1 and "Something else" in parts[0]


def test_the_explorer_has_labelled_controls_and_its_data(crafted, build):
    found = build([evaluated(crafted, (-0.2, -0.1))], [crafted.looking()])
    labels = {one["for"] for one in found.all("label")}
    assert labels == {one["id"] for one in found.all("select")} and len(labels) == 7
    ids = [one["id"] for _, one in found.seen if "id" in one]
    assert len(ids) == len(set(ids))
    (data,) = [json.loads(text) for text in found.scripts if text.startswith('{"models"')]
    assert data["models"][0]["pages"][0]["id"] == "page-1"


def test_what_is_missing_is_said(crafted, build):
    found = build([crafted.results()], "only small local checkpoints")
    assert "Not evaluated yet." in found.text and "Not profiled yet." in found.text
    assert "m is not in the explorer: only small local checkpoints." in found.text
    assert len(charts(found)) == 2 and not found.all("select")


def test_nothing_is_said_of_documents_that_were_not_evaluated(crafted):
    given = PARAMS.replace("methods: [full, sparsemm]", "methods: [full, sparsemm], tasks: [textcaps_val], source: d")
    rows = [crafted.row(*cells, task="textcaps_val") for cells in (("full", "", 0.9), ("sparsemm", "8", 0.6))]
    rows = [row | {"metric": "textcaps_CIDEr"} for row in rows]
    result = crafted.results(rows)
    contents, parts = sections.written(sections.Material(parse_params(given), [result], {"m": "not asked"}))
    text = crafted.checked(page("t", contents, *parts)).text
    assert text.count("textcaps_val: 9 questions of its files in 'd'") == 2 and "was not checked" in text
    for wrong in ("another split", "no score was computed from", "word accuracy", "exact match", "pages of 'e'"):
        assert wrong not in text


@pytest.mark.parametrize(("pages", "known"), [("1", False), ("2", True)])
def test_one_page_has_no_verdict_anywhere(crafted, build, pages, known):
    result = evaluated(crafted, (-0.2, -0.1))
    few = [without_hollow(row | {"pages": pages}) for row in result.evaluation]
    found = build([crafted.results(few)])
    assert ("better at B = 8" in found.text) == known == ("1 / 0 / 0" in found.text)
    assert ("[0." in found.text) == known == ("bootstrap intervals over" in found.text)
    assert (TOO_FEW in found.text) != known
    assert ("Of fewer than two pages there is no interval and no verdict; the line" in found.text) != known


def test_a_note_stands_in_every_table_of_its_model(crafted, build):
    note = "a declared test model"
    found = build([evaluated(crafted, (-0.2, -0.1), key="t", note=note)])
    tables = len(found.all("table"))
    assert tables == 4 and found.text.count(f"t ({note})") == tables
    assert "No model that counts as evidence" in found.text


def test_links_lead_somewhere_whatever_the_models_are_called(crafted, build):
    found = build([crafted.results(key=key) for key in ("heads", "limits", "found")])
    ids = [attributes["id"] for _, attributes in found.seen if "id" in attributes]
    assert len(ids) == len(set(ids)) and {link["href"] for link in found.all("a")} <= {"#" + one for one in ids}


def test_hostile_names_and_notes_stay_text(crafted, build):
    bad = '"><img src=x onerror=alert(1)></script><!--'
    found = build([evaluated(crafted, (-0.2, -0.1), key=bad, note=bad)], bad)
    assert bad in found.text and not found.all("img")
    found = build([evaluated(crafted, (-0.2, -0.1), key=bad, note=bad)], [crafted.looking(bad)])
    assert all(one["src"].startswith("data:image/") for one in found.all("img"))
    assert all("onerror" not in attributes for _, attributes in found.seen)
    (data,) = [json.loads(text) for text in found.scripts if text.startswith('{"models"')]
    assert data["models"][0]["key"] == data["models"][0]["pages"][0]["id"] == bad


def test_a_card_without_numbers_is_left_out(crafted, build):
    result = crafted.results()
    result.card.update({"held_out": {"one": {"word_accuracy": "high", "exact_match": 1.0}, "two": 3}})
    assert "from its card" not in build([result]).text
    result.card.update({"held_out": {"one": {"word_accuracy": 0.987, "exact_match": 1.0}, "pages_per_style": 12}})
    found = build([result]).text
    assert "98.7%" in found and "12 pages each" in found
