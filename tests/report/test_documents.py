"""What was evaluated is said as the tables and params.yaml have it, and no more."""

from __future__ import annotations

import pytest

from sparsemm.params import parse_params
from sparsemm.report import documents

PARAMS = """
models: {}
datasets:
  scored: {%s, samples: 4}
  asked: {%s, samples: 4}
chase: {dataset: scored}
allocate: {budgets: [8], window: 4}
evaluate: {dataset: asked, samples: 4, methods: [full, sparsemm], tasks: [%s], source: %s}
profile: {methods: [full], budget: 8, lengths: [128]}
"""
DRAWN = ("source: synthetic, split: calibration", "source: synthetic, split: evaluation")
FOLDERS = tuple(f"source: folder, format: coco, path: {name}, licence: x" for name in ("a", "b"))


def params(datasets=DRAWN, tasks="read, qa", source="hub"):
    return parse_params(PARAMS % (*datasets, tasks, source))


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([{"task": "read", "n": "96"}], "96 pages"),
        ([{"task": "read", "n": "1"}], "1 page"),
        ([{"task": "read", "n": "4"}, {"task": "read", "n": "96"}], "4 to 96 pages"),
        ([{"task": "gqa", "n": "9"}], "9 questions"),
        ([{"task": "gqa", "n": "9", "pages": "4"}], "9 questions about 4 pages"),
        ([{"task": "gqa", "n": "9", "pages": "9"}], "9 pages"),
    ],
)
def test_pages_and_questions_are_those_of_the_tables(cells, said):
    assert documents.counted(cells) == said


def test_what_is_resampled():
    old, new = {"task": "gqa", "n": "9"}, {"task": "gqa", "n": "9", "pages": "4"}
    assert documents.resampled([old]) == "over questions"  # such a table knows no pages
    assert documents.resampled([new | {"draws": "1"}]) == "over pages"
    assert documents.resampled([new, new | {"draws": "3"}]) == "over pages (and, for random methods, over draws)"


def test_only_what_was_evaluated_is_named(crafted):
    result = crafted.results([crafted.row("full", "", 0.9, task="textcaps_val")])
    given = params(tasks="textcaps_val", source="from/elsewhere")
    assert documents.scope(given, [result]) == "textcaps_val: 9 questions of its files in 'from/elsewhere'"
    assert "on the hub" in documents.scope(params(tasks="textcaps_val"), [result])
    both = crafted.results([crafted.row("full", "", 0.9, task=task) for task in ("read", "qa")])
    assert documents.scope(params(), [both]) == "read, qa: 9 pages of 'asked'"
    assert documents.scope(params(), [crafted.results()]) == documents.NONE


def test_documents_are_called_apart_only_where_that_was_checked(crafted):
    own, other = (crafted.results([crafted.row("full", "", 0.9, task=task)]) for task in ("read", "textcaps_val"))
    assert "another split than those of the scores ('scored')" in documents.apart(params(), [own])
    assert "by their names" in documents.apart(params(FOLDERS, "read"), [own])
    said = documents.apart(params(tasks="textcaps_val"), [other])
    assert "textcaps_val" in said and "was not checked" in said and "another split" not in said
    assert "not checked" in (both := documents.apart(params(), [own, other])) and "another split" in both
    assert documents.apart(params(), [crafted.results()]) == ""


def test_metrics_are_those_of_the_tables(crafted):
    cider = crafted.row("full", "", 0.9, task="textcaps_val") | {"metric": "textcaps_CIDEr"}
    assert documents.metrics([crafted.results([cider])]) == "textcaps_val: textcaps CIDEr"
    assert "word error rate" in documents.metrics([crafted.results([crafted.row("full", "", 0.9)])])
