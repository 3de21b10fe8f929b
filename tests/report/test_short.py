"""The findings in short follow from all models that are evidence."""

from __future__ import annotations

from sparsemm.report.short import NOTHING, in_short


def test_declared_test_models_are_left_out(crafted):
    rows = [crafted.row("snapkv", "8", 0.5, (-0.2, -0.1)), crafted.row("snapkv", "16", 0.5, (0.1, 0.2))]
    said = in_short([crafted.results(rows), crafted.results(rows, key="t", note="a test model", share=0.9)])
    assert "hold 50 % of the visual score in one model" in said[0] and "r = 1.000 or better" in said[0]
    assert said[1].endswith("2 comparisons (model, task, budget): better in 1, worse in 1, no difference shown in 0.")
    assert "about 0.1 of the 2 intervals" in said[2]
    assert said[3].endswith("declared test models: t.") and len(said) == 4
    assert in_short([crafted.results(rows, note="a test model")])[0] == NOTHING


def test_what_was_not_run_is_not_said(crafted):
    said = in_short([crafted.results(scores=crafted.table(samples=1))])
    assert said[1] == NOTHING and len(said) == 2 and "agree" not in said[0]


def test_cases_against_the_full_cache(crafted):
    def model(key, low, high):
        rows = [crafted.row("full", "", 0.9), crafted.row("sparsemm", "8", 0.5, full=(-0.5, -0.4))]
        return crafted.results([*rows, crafted.row("sparsemm", "16", 0.8, full=(low, high))], key=key)

    said = in_short([model("a", -0.2, 0.1), model("b", -0.2, -0.1)])
    assert (
        "2 cases (model, task): in 1 it is not shown worse from some budget on (B = 16); in 1 even the largest"
        in said[1]
    )
    assert "in 2 even the largest budget tried is worse" in in_short([model("a", -1, -0.5), model("b", -1, -0.5)])[1]


def test_bytes_are_those_of_the_longest_prompt(crafted):
    rows = [crafted.timing(length=128, kept=50), crafted.timing(length=512, kept=10), crafted.timing("snapkv", kept=90)]
    other = crafted.results(profile=[crafted.timing(kept=25)], key="b")
    assert (
        "sparsemm holds 10 % to 25 % of the full cache's bytes (B = 16)"
        in in_short([crafted.results(profile=rows), other])[-1]
    )
