"""Which method is chosen, given the evidence."""

from __future__ import annotations

import pytest

from sparsemm.tune.stage import decide
from tests.recipes import comparison

WORDS = {1: "better", 0: "no difference shown", -1: "worse"}


def rows(method, overall, *tasks, value=0.5):
    """Comparisons of a method with SnapKV: 1, 0 or -1 for the mean and for each task."""
    verdicts = {"all tasks": overall} | dict(zip(("read", "qa"), tasks, strict=False))
    made = [comparison(method, task, WORDS[one], value=value) for task, one in verdicts.items()]
    return [*made, comparison(method, "read", "worse", budget=12)]  # a single budget never decides


@pytest.mark.parametrize(
    ("evidence", "chosen", "reason"),
    [
        (rows("w", 1, 1, 0), "w", "w won the search and is better: +0.100 [+0.050, +0.150] against snapkv"),
        (rows("w", 0, 1, 0), "snapkv", "w won the search but is not shown to be better"),
        (rows("w", 1, 1, -1), "snapkv", "is worse in qa"),
        (rows("w", -1, -1, -1), "snapkv", "is worse in all tasks, read, qa"),
        (rows("w", 0, 0, 0) + rows("a", 1, 1, 1) + rows("b", 1, 1, 0, value=0.6), "b", "the best method that is safe"),
        (rows("w", 0, 0, 0) + rows("a", 1, -1, 1), "snapkv", "the safe choice"),
    ],
)
def test_the_winner_is_chosen_only_if_it_is_safe(evidence, chosen, reason):
    names = [name for name in ("a", "b") if any(row.method == name for row in evidence)]
    name, why = decide("w", evidence, ["w", *names, "snapkv"])
    assert name == chosen and reason in why and why.endswith(".")


def test_a_control_that_wins_and_one_that_fails_later_are_no_recipes():
    name, why = decide("w", rows("w", 1, 1, 1) + rows("a", 1, 1, 1), ["a", "snapkv"])
    assert name == "a" and "w won the search but is a control or fails on other pages, so a is used" in why
    assert decide("w", rows("a", 0, 0, 0), ["a", "snapkv"])[0] == "snapkv"


def test_snapkv_may_win_itself():
    assert decide("snapkv", [comparison("snapkv", "all tasks", "worse", against="full")], ["snapkv"])[0] == "snapkv"
