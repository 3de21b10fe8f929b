"""Sentences follow from the tables, in every direction."""

from __future__ import annotations

import numpy as np
import pytest

from sparsemm.report.results import Results, comparison, concentration, smallest_lossless, speed, verdict
from sparsemm.scores import ScoreTable

HEADER = {"model": "m", "revision": None, "fingerprint": "f", "num_kv_heads": 4, "tokens": 10}


def table(share_of_first):
    per_sample = np.full((4, 5, 4), (1 - share_of_first) / 19)
    per_sample[:, 0, 0] = share_of_first
    hits = np.zeros((5, 4), dtype=np.int64)
    hits[0, 0] = 9
    return ScoreTable.from_samples(per_sample, hits, HEADER)


def row(method, budget, value, against=(0.0, 0.0), full=(0.0, 0.0)):
    return {
        "task": "read",
        "method": method,
        "budget": budget,
        "kept_slots": budget or "80",
        "bytes": "1",
        "metric": "word_accuracy",
        "value": str(value),
        "n": "9",
        "ci_low": str(value - 0.1),
        "ci_high": str(value + 0.1),
        "diff_vs_sparsemm": "" if method == "sparsemm" else str(sum(against) / 2),
        "diff_ci_low": "" if method == "sparsemm" else str(against[0]),
        "diff_ci_high": "" if method == "sparsemm" else str(against[1]),
        "diff_vs_full": str(sum(full) / 2),
        "diff_full_ci_low": str(full[0]),
        "diff_full_ci_high": str(full[1]),
    }


def results(rows, profile=(), share=0.5):
    return Results("m", "", {}, {}, table(share), list(rows), list(profile), {"device": "d"})


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.2, -0.1, "better"),
        (0.1, 0.2, "worse"),
        (-0.1, 0.1, "no difference shown"),
        (-0.1, 0.0, "no difference shown"),
    ],
)
def test_verdicts_follow_the_interval(low, high, word):
    assert verdict(row("snapkv", "8", 0.5, (low, high))) == word


def test_comparison_lists_budgets_by_verdict():
    rows = [row("snapkv", b, 0.5, i) for b, i in (("8", (-0.2, -0.1)), ("16", (-0.1, 0.1)), ("24", (0.1, 0.2)))]
    said = comparison(results(rows), "read", "snapkv")
    assert said == ("sparsemm against snapkv: better at B = 8; worse at B = 24; no difference shown at B = 16.")
    assert comparison(results(rows), "read", "adakv") is None


def test_the_smallest_budget_that_is_not_shown_to_lose():
    rows = [row("full", "", 0.9)]
    rows += [row("sparsemm", "8", 0.2, full=(-0.8, -0.6)), row("sparsemm", "16", 0.85, full=(-0.1, 0.02))]
    said = smallest_lossless(results([*rows, row("sparsemm", "24", 0.9, full=(-0.02, 0.02))]), "read")
    assert "From B = 16 on (20% of the full cache's 80 slots" in said
    # A larger budget that loses breaks the chain.
    said = smallest_lossless(results([*rows, row("sparsemm", "24", 0.6, full=(-0.4, -0.2))]), "read")
    assert said.startswith("At every budget tried sparsemm loses")
    assert smallest_lossless(results([]), "read") is None


def test_concentration_states_the_share_of_the_top_heads():
    said = concentration(results([], share=0.62))
    assert "(1 of 20) hold 62%" in said and "for 90% of tokens" in said


@pytest.mark.parametrize(("ratio", "word"), [("0.5", "faster (0.50"), ("2.0", "slower (2.00"), ("1.01", "neither")])
def test_speed_is_said_as_measured(ratio, word):
    one = {"method": "sparsemm", "prompt_length": "128", "decode_ratio_to_full": ratio, "kept_bytes": "25"}
    said = speed(results([], [one | {"full_bytes": "100"}]))
    assert word in said and "25.0%" in said
