"""What is said about the search: the best candidate, and a gain only where the intervals show one."""

from __future__ import annotations

import pytest

from sparsemm.errors import DataError
from sparsemm.report.search import best_of, gains, leading, mean_areas
from sparsemm.studies.candidates import CANDIDATES
from sparsemm.studies.curve import AREA
from sparsemm.studies.names import OVERALL, PAPER


def rows(verdict, setting="rho 0.4", against=PAPER):
    sign = {"better": "0.1", "worse": "-0.1"}.get(verdict, "0")
    held = {"task": OVERALL, "condition": AREA, "setting": setting, "value": "0.7", "against": against, "n": "32"}
    return [held | {"verdict": verdict, "diff": sign, "diff_ci_low": sign, "diff_ci_high": sign}]


def search(**areas):
    """A search's overall areas, 0.5 but for those given."""
    row = {"task": OVERALL, "condition": AREA}
    return [row | {"setting": name, "value": str(areas.get(name, 0.5))} for name in CANDIDATES]


NOTES = {"a": "", "b": "", "t": "a test model"}


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (("better", "better", "worse"), "mean over tasks, holds on all 2 models: rho 0.4 may become the default"),
        (("better", "no difference shown", "better"), "holds on 1 of 2 models: the paper's"),
        (("worse", "worse", "better"), "holds on 0 of 2 models: the paper's"),
    ],
)
def test_a_gain_holds_where_every_interval_says_so(verdicts, said):
    made = {key: rows(verdict) for key, verdict in zip(NOTES, verdicts, strict=True)}
    *each, last = gains("rho 0.4", made, NOTES)
    assert said in last
    assert [v in line for v, line in zip(verdicts, each, strict=True)] == [True] * 3 and "t *" in each[2]


def test_a_mean_over_tasks_hides_no_task_that_is_worse():
    overall = rows("no difference shown")
    numbers = {"diff": "-0.0661", "diff_ci_low": "-0.1124", "diff_ci_high": "-0.0181"}
    read = overall[-1] | {"task": "read", "verdict": "worse"} | numbers
    qa = overall[-1] | {"task": "qa", "verdict": "better", "diff": "0.03"}
    said = gains("rho 0.4", {"a": [*overall, read, qa], "t": [*overall, read]}, NOTES)
    assert "a, 32 held-out samples" in said[0] and "mean over tasks: no difference shown" in said[0]
    assert "read: worse (-0.066 [-0.112, -0.018]); qa: better (+0.030" in said[0]
    assert said[-2] == "For single tasks rho 0.4 is shown worse than sparsemm: a, read."  # a test model decides nothing
    assert "single tasks" not in " ".join(gains("rho 0.4", {"a": [*overall, qa]}, NOTES))


def test_a_model_that_was_not_asked_and_another_method_are_no_gain():
    assert "1 of 2" in gains("rho 0.4", {"a": rows("better")}, NOTES)[-1]
    made = {key: rows("better", against="snapkv") for key in ("a", "b")}
    assert "0 of 2" in gains("rho 0.4", made, NOTES)[-1]


def test_the_papers_own_allocation_gains_nothing():
    (said,) = gains(PAPER, {"a": rows("", PAPER, "snapkv")}, NOTES)
    assert "nothing to gain" in said


def test_rows_of_another_candidate_are_refused():
    with pytest.raises(DataError, match=r"confirm/b\.csv: not of 'rho 0\.4'"):
        gains("rho 0.4", {"a": rows("better"), "b": rows("better", "margin")}, NOTES)


def test_the_best_candidate_has_the_largest_mean_area_over_models_that_are_no_test_models():
    searches = {
        "a": search(**{"exponent 0.5": 0.1, "group max": 0.9, "rho 0.4": 0.6, "overflow lost": 1.0}),
        "b": search(**{"group max": 0.2, "rho 0.4": 0.4}),
        "t": search(margin=1.0),
    }
    areas = mean_areas(searches, NOTES)
    assert areas["group max"] == pytest.approx(0.55) and "overflow lost" not in areas  # which keeps fewer slots
    best, other = best_of(areas, "margin")
    assert "group max (area 0.550; sparsemm 0.500)" in best and "margin (area 0.500) instead" in other
    assert len(best_of(areas, "group max")) == 1
    assert best_of(mean_areas({"a": search()}, NOTES), PAPER) == [
        "Best by the searches, mean over tasks and models: sparsemm (area 0.500)."  # of equal ones the first
    ]
    assert mean_areas({}, NOTES) == {} and best_of({}, "margin") == []
    with pytest.raises(DataError, match=r"search/a\.csv: not a search over today's candidates"):
        mean_areas({"a": search()[1:]}, NOTES)


def test_the_best_are_shown_first():
    found = [{"task": OVERALL, "condition": AREA, "setting": str(i), "value": str(i / 10)} for i in range(9)]
    found.append({"task": "qa", "condition": "", "setting": PAPER, "value": "0"})
    assert [row["setting"] for row in leading(found)] == ["8", "7", "6", "5", "4", "3", PAPER]
