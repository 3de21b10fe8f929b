"""Verdicts and numbers follow from the tables, in every direction."""

from __future__ import annotations

import pytest

from sparsemm.report import findings
from sparsemm.report.sections.method import equal_slots
from tests.report import crafted


def test_comparison_lists_budgets_by_verdict_and_by_how_much():
    intervals = ((8, (-0.2, -0.1)), (16, (-0.1, 0.1)), (24, (0.1, 0.2)), (32, (-0.5, -0.3)))
    model = crafted.model([crafted.row("snapkv", b, 0.5, i) for b, i in intervals])
    result = findings.verdicts(model, "read", "snapkv")
    assert {word: [row.budget for row in rows] for word, rows in result.items()} == {
        "better": [8, 32],
        "worse": [24],
        "no difference shown": [16],
    }
    said = findings.comparison(model, "read", "snapkv")
    assert "better at B = 8, 32 (+0.150 to +0.400)" in said and "worse at B = 24 (-0.150)" in said
    assert findings.comparison(model, "read", "adakv") == "" == findings.comparison(model, "qa", "snapkv")


def enough(*intervals):
    """The budget and the sentence, for sparsemm minus full at B = 8, 16, 24."""
    rows = [crafted.row("full", None, 0.9)]
    rows += [crafted.row("sparsemm", b, 0.5, full=i) for b, i in zip((8, 16, 24), intervals, strict=False)]
    model = crafted.model(rows)
    row = findings.enough_from(model, "read")
    return row and row.budget, findings.against_full(model, "read")


def test_the_smallest_budget_that_is_not_shown_worse():
    budget, said = enough((-0.8, -0.6), (-0.1, 0.02), (-0.02, 0.02))
    assert budget == 16 and "20%" in said and "up to 0.100" in said
    budget, said = enough((0.01, 0.02))
    assert budget == 8 and "rules out a loss" in said


def test_worse_everywhere_is_said_only_when_it_is_so():
    budget, said = enough((-0.8, -0.6), (-0.5, -0.1), (-0.4, -0.2))
    assert budget is None and "every budget" in said
    # A larger budget that loses breaks the chain, yet the smaller one was not shown worse.
    budget, said = enough((-0.8, -0.6), (-0.1, 0.02), (-0.4, -0.2))
    assert budget is None and "every budget" not in said and "B = 8, 24" in said and "B = 16" in said


def test_nothing_is_said_of_what_was_not_run():
    assert findings.against_full(crafted.model(), "read") == ""
    assert findings.against_full(crafted.model([crafted.row("full", None, 0.9)]), "read") == ""
    assert findings.speed(crafted.model()) == [] and equal_slots(crafted.results(crafted.model())) == ""


@pytest.mark.parametrize(
    ("r", "text"),
    [
        (0.99999, "0.999"),
        (1.0 - 1e-12, "1.000"),
        (0.99, "0.990"),
        (-0.0001, "-0.001"),
        (float("nan"), "-"),
        (None, "-"),
    ],
)
def test_a_correlation_is_rounded_down(r, text):
    assert findings.at_least(r) == text


@pytest.mark.parametrize(("ratio", "word"), [(0.5, "faster at 128"), (2.0, "slower at 128"), (1.01, "neither")])
def test_speed_is_claimed_beyond_the_noise(ratio, word):
    held, said = findings.speed(crafted.model(timings=[crafted.timing(ratio=ratio), crafted.timing("snapkv", ms=2.2)]))
    assert "25.0%" in held and word in said and "factor of 1.10" in said


def test_speed_is_not_claimed_within_the_noise_on_a_busy_machine_or_without_a_second_measurement():
    within = [crafted.timing(ms=2.0, ratio=0.7), crafted.timing("snapkv", ms=3.6)]
    assert "neither" in findings.speed(crafted.model(timings=within))[1]
    whole = [crafted.timing(ratio=0.7), crafted.timing("transformers", ms=2.0), crafted.timing("full", ms=3.6)]
    assert "factor of 1.80" in findings.speed(crafted.model(timings=whole))[1], "full caches tell of noise too"
    busy = [crafted.timing(ms=78.0, ratio=43.0), crafted.timing("snapkv", ms=2.4, length=512)]
    said = findings.speed(crafted.model(timings=busy))[1]
    assert "no claim about time" in said and "32.5" in said and "slower" not in said
    said = findings.speed(crafted.model(timings=[crafted.timing(ratio=0.1)]))[1]
    assert "no claim is made" in said and "faster" not in said


def test_unequal_slots_are_said():
    def slots(kept):
        rows = [crafted.row("sparsemm", 8, 0.5), crafted.row("snapkv", 8, 0.5, kept_slots=kept)]
        return equal_slots(crafted.results(crafted.model(rows)))

    assert "same number" in slots(8) and "1.25" in slots(9.25)
