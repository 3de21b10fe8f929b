"""The findings in short follow from all models that are evidence."""

from __future__ import annotations

import pytest

from sparsemm.report.results import INTERVALS
from sparsemm.report.short import NOTHING, TOO_FEW, in_short
from sparsemm.report.studies import area_differences, half_ranks
from sparsemm.scores import ScoreTable
from sparsemm.studies.curve import AREA
from tests.report.studied import rows


def test_declared_test_models_are_left_out(crafted):
    rows = [crafted.row("snapkv", "8", 0.5, (-0.2, -0.1)), crafted.row("snapkv", "16", 0.5, (0.1, 0.2))]
    said = in_short([crafted.results(rows), crafted.results(rows, key="t", note="a test model", share=0.9)], {})
    assert "hold 50 % of the visual score in one model" in said[0] and "Pearson's r = 1.000 or better" in said[0]
    assert said[1].endswith("2 comparisons (model, task, budget): better in 1, worse in 1, no difference shown in 0.")
    assert "about 0.1 of the 2 intervals" in said[2]
    assert said[3].endswith("declared test models: t.") and len(said) == 4
    assert in_short([crafted.results(rows, note="a test model")], {})[0] == NOTHING


def test_agreement_of_halves_is_never_rounded_up_and_ranks_stand_beside_it(crafted, monkeypatch):
    monkeypatch.setattr(ScoreTable, "split_half", lambda self: 0.99958)
    models = [crafted.results(key=key) for key in "ab"]
    halves = {"condition": "rank correlation", "setting": "even pages and odd pages", "value": "0.98952"}
    sources = {"a": [halves, halves | {"setting": "small-type", "value": "0.5"}], "b": [halves | {"value": "0.99"}]}
    said = in_short(models, {}, half_ranks({"sources": sources}, ["a", "b"]))[0]
    assert "Pearson's r = 0.999 or better" in said and "ranks of all heads at 0.989 or better (Spearman)" in said
    said = in_short(models, {}, half_ranks({"sources": sources}, ["a"]))[0]
    assert "0.989 or better in 1 of them" in said
    assert "Spearman" not in in_short(models, {}, half_ranks({}, ["a", "b"]))[0]


def test_what_was_not_run_is_not_said(crafted):
    said = in_short([crafted.results(scores=crafted.table(samples=1))], {})
    assert said[1] == NOTHING and len(said) == 2 and "agree" not in said[0]


def test_an_evaluation_without_intervals_is_no_finding(crafted):
    bare = dict.fromkeys((end for ends in INTERVALS for end in ends), "")
    given = [crafted.row("full", "", 0.9) | bare, crafted.row("sparsemm", "8", 0.5) | bare]
    assert in_short([crafted.results(given)], {})[1] == TOO_FEW


def test_cases_against_the_full_cache(crafted):
    def model(key, low, high):
        rows = [crafted.row("full", "", 0.9), crafted.row("sparsemm", "8", 0.5, full=(-0.5, -0.4))]
        return crafted.results([*rows, crafted.row("sparsemm", "16", 0.8, full=(low, high))], key=key)

    said = in_short([model("a", -0.2, 0.1), model("b", -0.2, -0.1)], {})
    assert (
        "2 cases (model, task): in 1 it is not shown worse from some budget on (B = 16); in 1 even the largest"
        in said[1]
    )
    assert (
        "in 2 even the largest budget tried is worse" in in_short([model("a", -1, -0.5), model("b", -1, -0.5)], {})[1]
    )


def test_bytes_are_those_of_the_longest_prompt(crafted):
    rows = [crafted.timing(length=128, kept=50), crafted.timing(length=512, kept=10), crafted.timing("snapkv", kept=90)]
    other = crafted.results(profile=[crafted.timing(kept=25)], key="b")
    assert (
        "sparsemm holds 10 % to 25 % of the full cache's bytes (B = 16); accuracy was not measured"
        in in_short([crafted.results(profile=rows), other], {})[-1]
    )


def test_bytes_are_not_sold_as_accuracy(crafted):
    given = crafted.results([crafted.row("full", "", 0.9)], [crafted.timing(length=512)])
    assert in_short([given], {})[-1].endswith("accuracy, which was measured on prompts of 80 tokens on average.")


@pytest.mark.parametrize(("gain", "counts"), [(0.3, (1, 0, 0)), (-0.3, (0, 1, 0)), (0.0, (0, 0, 1))])
def test_all_budgets_are_one_number_where_areas_are_known(crafted, gain, counts):
    areas = area_differences({"curve": {"m": with_area(gain)}}, ["m"])
    assert list(areas) == ["m, read"]
    evaluated = [crafted.row("snapkv", "8", 0.5, (-0.2, -0.1))]
    head, against, chance = in_short([crafted.results(evaluated)], areas)[1:]
    better, worse, none = counts
    assert (
        f"Against snapkv: better in {better}, worse in {worse}, no difference shown in {none} (by {gain:+.2f}"
        in against
    )
    assert head.endswith("better in every case than snapkv." if better else "none of them is beaten in every case.")
    assert "0.05 of the 1 intervals" in chance


def test_areas_are_of_the_asked_models_alone():
    assert area_differences({"curve": {"m": with_area(0.1)}}, ["n"]) == {} == area_differences({}, ["m"])


def with_area(gain):
    return [row | {"condition": AREA, "budget": ""} for row in rows(gain=gain) if row["budget"] != "24"]
