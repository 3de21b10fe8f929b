"""Sentences follow from the tables, in every direction."""

from __future__ import annotations

import pytest

from sparsemm.report import findings


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.2, -0.1, "better"),
        (0.1, 0.2, "worse"),
        (-0.1, 0.1, "no difference shown"),
        (-0.1, 0.0, "no difference shown"),
        (0.0, 0.1, "no difference shown"),
        (0.0, 0.0, "no difference shown"),
    ],
)
def test_verdicts_follow_the_interval(crafted, low, high, word):
    assert findings.verdict(crafted.row("snapkv", "8", 0.5, (low, high))) == word
    # The other difference is written the other way round: method minus full, about the method.
    opposite = {"better": "worse", "worse": "better"}.get(word, word)
    assert findings.verdict(crafted.row("snapkv", "8", 0.5, full=(low, high)), "diff_full") == opposite


def test_comparison_lists_budgets_by_verdict_and_by_how_much(crafted):
    intervals = (("8", (-0.2, -0.1)), ("16", (-0.1, 0.1)), ("24", (0.1, 0.2)), ("32", (-0.5, -0.3)))
    result = crafted.results([crafted.row("snapkv", b, 0.5, i) for b, i in intervals])
    assert findings.comparison(result, "read", "snapkv") == (
        "sparsemm against snapkv: better at B = 8, 32 (+0.150 to +0.400); worse at B = 24 (-0.150); "
        "no difference shown at B = 16 (+0.000)."
    )
    assert findings.comparison(result, "read", "adakv") is None
    assert findings.comparison(result, "qa", "snapkv") is None


def lossless(crafted, *intervals):
    """The sentence, for sparsemm minus full at B = 8, 16, 24."""
    rows = [crafted.row("full", "", 0.9)]
    rows += [crafted.row("sparsemm", b, 0.5, full=i) for b, i in zip(("8", "16", "24"), intervals, strict=False)]
    result = crafted.results(rows)
    return findings.smallest_lossless(result, "read"), findings.lossless_from(result, "read")


def test_the_smallest_budget_that_is_not_shown_worse(crafted):
    said, budget = lossless(crafted, (-0.8, -0.6), (-0.1, 0.02), (-0.02, 0.02))
    assert budget == "16" and said.startswith("From B = 16 on (20% of the full cache's 80 slots")
    assert "a loss of up to 0.100 is not ruled out" in said
    said, budget = lossless(crafted, (0.01, 0.02))
    assert budget == "8" and "the interval rules out a loss" in said


def test_worse_everywhere_is_said_only_when_it_is_so(crafted):
    said, budget = lossless(crafted, (-0.8, -0.6), (-0.5, -0.1), (-0.4, -0.2))
    assert budget is None and said.startswith("At every budget tried sparsemm is worse") and "closest at" in said
    # A larger budget that loses breaks the chain, yet the smaller one was not shown worse.
    said, budget = lossless(crafted, (-0.8, -0.6), (-0.1, 0.02), (-0.4, -0.2))
    assert budget is None and "At every budget" not in said
    assert "worse than the full cache (0.900) at B = 8, 24" in said and "not shown worse at B = 16" in said


def test_nothing_is_said_of_what_was_not_run(crafted):
    assert findings.smallest_lossless(crafted.results(), "read") is None
    assert findings.smallest_lossless(crafted.results([crafted.row("full", "", 0.9)]), "read") is None
    assert findings.speed(crafted.results()) == []
    assert findings.equal_slots([crafted.results()]) is None


def test_concentration_states_the_share_of_the_top_heads(crafted):
    said = findings.concentration(crafted.results(share=0.62))
    assert "(1 of 20) hold 62%" in said and "give them 5%" in said and "for 90% of tokens" in said
    assert "at Pearson's r = 1.000" in said


@pytest.mark.parametrize(
    ("r", "text"),
    [(0.99999, "0.999"), (1.0 - 1e-12, "1.000"), (0.99, "0.990"), (-0.0001, "-0.001"), (float("nan"), "-")],
)
def test_a_correlation_is_rounded_down(r, text):
    assert findings.at_least(r) == text


def test_one_sample_has_no_reliability(crafted):
    said = findings.concentration(crafted.results(scores=crafted.table(samples=1)))
    assert "cannot be said" in said and "nan" not in said


@pytest.mark.parametrize(
    ("ratio", "word"), [(0.5, "sparsemm is faster at 128"), (2.0, "sparsemm is slower at 128"), (1.01, "neither")]
)
def test_speed_is_claimed_beyond_the_noise(crafted, ratio, word):
    rows = [crafted.timing(ratio=ratio), crafted.timing("snapkv", ms=2.2)]
    held, said = findings.speed(crafted.results(profile=rows))
    assert "25.0%" in held and word in said and "factor of 1.10" in said


def test_speed_is_not_claimed_within_the_noise(crafted):
    rows = [crafted.timing(ms=2.0, ratio=0.7), crafted.timing("snapkv", ms=3.6)]
    assert "neither" in findings.speed(crafted.results(profile=rows))[1]


def test_speed_is_not_claimed_on_a_busy_machine_or_without_a_second_measurement(crafted):
    busy = [crafted.timing(ms=78.0, ratio=43.0), crafted.timing("snapkv", ms=2.4, length=512)]
    said = findings.speed(crafted.results(profile=busy))[1]
    assert "no claim about time" in said and "32.5" in said and "slower" not in said
    said = findings.speed(crafted.results(profile=[crafted.timing(ratio=0.1), crafted.timing("full", ms=9)]))[1]
    assert "no claim is made" in said and "faster" not in said


def test_unequal_slots_are_said(crafted):
    rows = [crafted.row("sparsemm", "8", 0.5), crafted.row("snapkv", "8", 0.5)]
    assert "the same number of slots" in findings.equal_slots([crafted.results(rows)])
    rows[1] = crafted.row("snapkv", "8", 0.5, kept=9.5)
    assert "up to 1.50 slots" in findings.equal_slots([crafted.results(rows)])
    # Other budgets hold other amounts, which is no inequality.
    rows[1] = crafted.row("snapkv", "16", 0.5)
    assert "the same number of slots" in findings.equal_slots([crafted.results(rows)])
