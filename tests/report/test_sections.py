"""The whole page of crafted results: complete, escaped, with links that lead somewhere."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from sparsemm.datasets.records import Entry, Record
from sparsemm.params import parse_params
from sparsemm.report import sections
from sparsemm.report.figures import View
from sparsemm.report.looking import Looking
from sparsemm.report.page import page

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
    """Page and images of some results."""

    def make(results, picture="it was not asked for"):
        images: dict[str, bytes] = {}
        parts = [sections.summary(results), sections.heads(results, images)]
        parts += [sections.model(result, picture, images) for result in results]
        parts.append(sections.method_notes(parse_params(PARAMS), results))
        links = [("found", "f"), ("heads", "h"), ("how", "w"), *((sections.anchor(r), r.name) for r in results)]
        return crafted.checked(page("t", links, *parts)), images

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
    found, _ = build([evaluated(crafted, against)])
    assert f"sparsemm against snapkv: {word} at B = 8" in found.text and counts in found.text
    assert f"{word} in 1" in found.text
    for other in {"better", "worse", "no difference shown"} - {word}:
        assert f"sparsemm against snapkv: {other}" not in found.text


@pytest.mark.parametrize("coarse", [False, True])
def test_every_picture_is_in_the_page_and_has_words(crafted, build, coarse):
    record = Record("r", Image.new("RGB", (40, 20), "white"), (Entry("zip", (2, 2, 20, 9), "word"),), "s", "l")
    rectangles, attention = np.array([[0.0, 0.0, 20.0, 20.0], [20.0, 0.0, 40.0, 20.0]]), np.array([0.9, 0.1])
    view = View("#1", rectangles, attention, np.array([False, coarse]))
    found, images = build([evaluated(crafted, (-0.2, -0.1))], Looking(record, 0, "zap", [view]))
    assert ("green on the thumbnail" in found.text) == coarse
    assert set(images) == {"score-curve", "heads-m", "looking-m", "accuracy-m-read", "latency-m"}
    inside = [base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in found.all("img")]
    assert sorted(inside) == sorted(images.values())
    assert all(len(image["alt"]) > 30 for image in found.all("img"))
    for png in inside:
        assert len(Image.open(io.BytesIO(png)).convert("L").getcolors(10**6)) > 5
    assert "'zip'" in found.text and "the model says 'zap'" in found.text


def test_what_is_missing_is_said(crafted, build):
    found, images = build([crafted.results()], "only small local checkpoints")
    assert "Not evaluated yet." in found.text and "Not profiled yet." in found.text
    assert "No picture of its heads at work: only small local checkpoints." in found.text
    assert set(images) == {"score-curve", "heads-m"}


def test_a_note_stands_in_every_table_of_its_model(crafted, build):
    note = "a declared test model"
    found, _ = build([evaluated(crafted, (-0.2, -0.1), key="t", note=note)])
    tables = len(found.all("table"))
    assert tables == 4 and found.text.count(f"t ({note})") == tables
    assert "No model that counts as evidence" in found.text


def test_links_lead_somewhere_whatever_the_models_are_called(crafted, build):
    found, _ = build([crafted.results(key=key) for key in ("heads", "how", "found")])
    ids = [attributes["id"] for _, attributes in found.seen if "id" in attributes]
    assert len(ids) == len(set(ids)) and {"#" + one for one in ids} == {link["href"] for link in found.all("a")}


def test_hostile_names_and_notes_stay_text(crafted, build):
    bad = '"><img src=x onerror=alert(1)>'
    result = evaluated(crafted, (-0.2, -0.1), key=bad, note=bad)
    found, _ = build([result], bad)
    assert all("onerror" not in attributes for _, attributes in found.seen)
    assert all(image["src"].startswith("data:image/png") for image in found.all("img")) and bad in found.text


def test_a_card_without_numbers_is_left_out(crafted, build):
    result = crafted.results()
    result.card.update({"held_out": {"one": {"word_accuracy": "high", "exact_match": 1.0}, "two": 3}})
    assert "from its card" not in build([result])[0].text
    result.card.update({"held_out": {"one": {"word_accuracy": 0.987, "exact_match": 1.0}, "pages_per_style": 12}})
    found = build([result])[0].text
    assert "98.7%" in found and "12 pages each" in found
