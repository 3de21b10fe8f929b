"""What the tables of the controls say of a run and of a pair: the registered rules, on crafted figures."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.controls_tables import (
    DIFFERENCE,
    RANKS,
    Agreement,
    property_of_the_model,
    reads,
    run_cells,
    scored_in_both,
)


def run(words=0.6, top=0.7, high=-0.02):
    """The figures of a run: words read with one column, share of the best 5 %, and the end of the masking interval."""
    return {
        "held_out": {"one column": {"word_accuracy": words}, "two columns": {"word_accuracy": 0.2}},
        "scores": {"top_share": {"5%": top, "10%": 0.9}, "split_half": 0.99},
        "masking": {DIFFERENCE: [-0.1, -0.2, high]},
    }


def pair(shared=12, low=11, chance=6.0, ranks=0.8):
    alike = {"one": "a", "other": "b"}
    return [
        Agreement(**alike, metric="best 14 shared", value=shared, ci_low=low, ci_high=14, chance=chance),
        Agreement(**alike, metric="best 27 shared", value=20, ci_low=19, ci_high=21, chance=10.0),
        Agreement(**alike, metric=RANKS, value=ranks, ci_low=ranks, ci_high=ranks, chance=None),
    ]


@pytest.mark.parametrize(
    ("rows", "runs", "verdict"),
    [
        (pair(), [run(), run(0.5)], "yes"),
        (pair(), [run()], "yes"),
        (pair(ranks=0.699), [run(), run()], "neither: rank correlation 0.70"),
        (pair(shared=8, low=7, ranks=0.5), [run(), run()], "neither: 8 shared, rank correlation 0.50"),
        (pair(low=6), [run(), run()], "no: made by the training"),
        (pair(), [run(), run(0.49)], "reads too little"),
    ],
)
def test_a_pair_is_judged_by_the_registered_rule(rows, runs, verdict):
    assert property_of_the_model(rows, runs) == verdict


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        (run(), "hold"),
        (run(top=0.49), "not shown: sparse"),
        (run(high=0.0), "not shown: masking"),
        (run(top=0.4, high=0.1), "not shown: sparse, masking"),
        ({"held_out": run()["held_out"], "scores": None, "masking": None}, "-"),
    ],
)
def test_the_findings_hold_in_a_run_that_shows_both(figures, verdict):
    assert run_cells(figures)[-1] == verdict and run_cells(figures)[1] == "60 / 20"


def test_half_of_the_words_is_enough():
    assert reads(run(0.5)) and not reads(run(0.4999))


def test_heads_that_one_run_does_not_score_are_left_out():
    one, other = np.array([[0.0, 0.5, 0.3], [0.2, 0.0, 0.1]]), np.array([[0.9, 0.5, 0.3], [0.1, 0.0, 0.2]])
    assert scored_in_both(one, other) == "0.80, 4 heads"  # 1, 2, 3, 4 against 1, 2, 4, 3
    assert scored_in_both(other, other) == "1.00, 5 heads"
