"""What is said about the search: the choice, and a gain only where the intervals show one."""

from __future__ import annotations

import pytest

from sparsemm.errors import DataError
from sparsemm.report.search import asked, gains, leading
from sparsemm.studies.curve import AREA
from sparsemm.studies.names import CHOICE, OVERALL, PAPER


def rows(verdict, chosen="rho 0.4", against=PAPER):
    sign = {"better": "0.1", "worse": "-0.1"}.get(verdict, "0")
    choice = [
        {"task": CHOICE, "condition": "searched on a, b", "setting": name, "value": value, "against": ""}
        for name, value in {chosen: "0.7", PAPER: "0.6"}.items()
    ]
    held = {"task": OVERALL, "condition": AREA, "setting": chosen, "value": "0.7", "against": against, "n": "32"}
    return [*choice, held | {"verdict": verdict, "diff": sign, "diff_ci_low": sign, "diff_ci_high": sign}]


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
    first, *each, last = gains(made, NOTES)
    assert "rho 0.4 (mean area 0.700; sparsemm 0.600)" in first and said in last
    assert [v in line for v, line in zip(verdicts, each, strict=True)] == [True] * 3 and "t *" in each[2]


def test_a_mean_over_tasks_hides_no_task_that_is_worse():
    overall = rows("no difference shown")
    numbers = {"diff": "-0.0661", "diff_ci_low": "-0.1124", "diff_ci_high": "-0.0181"}
    read = overall[-1] | {"task": "read", "verdict": "worse"} | numbers
    qa = overall[-1] | {"task": "qa", "verdict": "better", "diff": "0.03"}
    said = gains({"a": [*overall, read, qa], "t": [*overall, read]}, NOTES)
    assert "a, 32 held-out samples" in said[1] and "mean over tasks: no difference shown" in said[1]
    assert "read: worse (-0.066 [-0.112, -0.018]); qa: better (+0.030" in said[1]
    assert said[-2] == "For single tasks rho 0.4 is shown worse than sparsemm: a, read."  # a test model decides nothing
    assert "single tasks" not in " ".join(gains({"a": [*overall, qa]}, NOTES))


def test_a_model_that_was_not_asked_and_another_method_are_no_gain():
    assert "1 of 2" in gains({"a": rows("better")}, NOTES)[-1]
    made = {key: rows("better", against="snapkv") for key in ("a", "b")}
    assert "0 of 2" in gains(made, NOTES)[-1]


def test_the_papers_own_allocation_may_be_the_best():
    (said,) = gains({"a": rows("better", chosen=PAPER)}, NOTES)
    assert "no candidate did better" in said


@pytest.mark.parametrize("made", [{"a": rows("better"), "b": rows("better", "margin")}, {"a": rows("better")[2:]}])
def test_rows_of_different_choices_or_none_are_refused(made):
    with pytest.raises(DataError, match="different choices, or none"):
        gains(made, NOTES)


def test_the_best_are_shown_first_and_the_choice_is_no_answer():
    found = [{"task": OVERALL, "condition": AREA, "setting": str(i), "value": str(i / 10)} for i in range(9)]
    found.append({"task": "qa", "condition": "", "setting": PAPER, "value": "0"})
    assert [row["setting"] for row in leading(found)] == ["8", "7", "6", "5", "4", "3", PAPER]
    assert len(asked(rows("better"))) == 1
