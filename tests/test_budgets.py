"""Budgets: exact totals, floors, caps, water-filling, and the published arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparsemm.budgets import allocate, allocate_paper, fill, largest_remainder, normalized, raised
from sparsemm.errors import BudgetError

scores_strategy = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.floats(0, 1e6, allow_subnormal=False)
)


@settings(max_examples=300)
@given(scores_strategy, st.integers(1, 300), st.integers(1, 40), st.floats(0, 1), st.integers(0, 400) | st.none())
def test_totals_floors_and_caps(scores: np.ndarray, budget: int, window: int, rho: float, length: int | None) -> None:
    window = min(window, budget)
    slots = allocate(scores, budget, window, rho, length)
    assert slots.dtype == np.int64 and slots.shape == scores.shape
    assert slots.sum() == scores.size * (budget if length is None else min(budget, length))
    if length is None or length > budget:
        assert (slots >= window + int(rho * (budget - window))).all()
    if length is not None:
        assert (slots <= length).all()


@settings(max_examples=200)
@given(scores_strategy, st.integers(40, 300))
def test_a_higher_score_never_gets_fewer_slots(scores: np.ndarray, length: int) -> None:
    slots = allocate(scores, 40, 4, 0.1, length).ravel()
    order = np.argsort(scores.ravel(), kind="stable")
    # One slot of difference is rounding between equal shares.
    assert (np.diff(slots[order]) >= -1).all()


@settings(max_examples=200)
@given(hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 100)), st.data())
def test_fill_takes_all_and_never_overflows(shares: np.ndarray, data: st.DataObject) -> None:
    room = data.draw(hnp.arrays(np.int64, len(shares), elements=st.integers(0, 50)))
    total = data.draw(st.integers(0, int(room.sum())))
    taken = fill(shares, total, room)
    assert taken.sum() == total and (taken <= room).all() and (taken >= 0).all()


@settings(max_examples=200)
@given(scores_strategy, st.floats(1e-3, 16))
def test_powers_keep_the_order_and_move_shares_to_or_from_the_largest(scores: np.ndarray, power: float) -> None:
    shares, powered = normalized(scores, 4, 2), normalized(raised(scores, power), 4, 2)
    order = np.argsort(shares.ravel(), kind="stable")
    assert (np.diff(powered.ravel()[order]) >= -1e-12).all() and abs(powered.sum() - 1) < 1e-9
    assert (powered.max() - shares.max()) * (power - 1) >= -1e-9
    assert raised(scores, 1.0) is scores


@pytest.mark.parametrize("largest", [1e-300, 1.0, 1e300])
def test_no_power_overflows(largest: float) -> None:
    shares = normalized(raised(np.array([[1.0, 0.5, 0.0]]) * largest, 16.0), 4, 2)
    assert np.allclose(shares, np.array([[1.0, 0.5**16, 0.0]]) / (1 + 0.5**16), rtol=1e-12)


@pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf])
def test_impossible_scores_stay_so_under_a_power(wrong: float) -> None:
    with pytest.raises(BudgetError, match="finite and not negative"):
        allocate(raised(np.array([[1.0, wrong]]), 0.5), 8, 2, 0.1)


def test_without_caps_the_equation_holds() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((4, 8))
    share = scores / scores.sum()
    exact = 32 + 0.1 * (256 - 32) + 0.9 * (256 - 32) * 32 * share
    assert np.abs(allocate(scores, 256, 32, 0.1) - exact).max() < 1


def test_what_one_head_cannot_use_flows_to_the_others_by_score() -> None:
    scores = np.array([[8.0, 1.0, 1.0, 0.0]])
    slots = allocate(scores, 10, 1, 0.0, prompt_length=16)
    assert slots.tolist() == [[16, 12, 11, 1]]  # 36 beyond the windows: 15 fit in the first, 21 are split 1:1:0
    assert allocate_paper(scores, 10, 1, 0.0, prompt_length=16).sum() < 40  # the published arithmetic loses them


def test_paper_arithmetic() -> None:
    scores = np.array([[0.5, 0.25], [0.25, 0.0]])
    slots = allocate_paper(scores, 64, 32, 0.1, prompt_length=500)
    # base 32, min int(3.2) = 3, remain 29 * 4 = 116: round(58 + 3), round(29 + 3), round(29 + 3), 3, plus 32
    assert slots.tolist() == [[93, 64], [64, 35]]
    assert allocate_paper(scores, 64, 32, 0.1, prompt_length=63).tolist() == [[63, 63], [63, 63]]


def test_largest_remainder_is_stable() -> None:
    assert largest_remainder(np.ones(3), 4).tolist() == [2, 1, 1]
    assert largest_remainder(np.array([0.0, 1.0]), 0).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("scores", "budget", "window", "rho"),
    [
        (np.ones((2, 2)), 3, 4, 0.1),
        (np.ones((2, 2)), 8, 0, 0.1),
        (np.ones((2, 2)), 8, 4, 1.1),
        (np.ones((2, 2)), 8, 4, float("nan")),
        (-np.ones((2, 2)), 8, 4, 0.1),
        (np.full((2, 2), np.nan), 8, 4, 0.1),
        (np.ones(4), 8, 4, 0.1),
        (np.ones((0, 4)), 8, 4, 0.1),
    ],
)
def test_impossible_budgets_are_refused(scores: np.ndarray, budget: int, window: int, rho: float) -> None:
    for function in (allocate, allocate_paper):
        with pytest.raises(BudgetError):
            function(scores, budget, window, rho, 100)
    with pytest.raises(BudgetError, match="do not fit"):
        fill(np.ones(2), 5, np.array([2, 2]))


def test_huge() -> None:
    scores = np.random.default_rng(0).pareto(1.0, (128, 128))
    assert allocate(scores, 1 << 20, 32, 0.1, 1 << 21).sum() == (1 << 20) * 128 * 128
