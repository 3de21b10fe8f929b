"""Weights other than the paper's: shapes, limits, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sparsemm.errors import BudgetError
from sparsemm.weights import group_max, layer_floor, power

MATRICES = arrays(np.float64, (3, 4), elements=st.floats(0, 100, allow_subnormal=False))


def test_a_power_below_one_evens_out_and_one_changes_nothing():
    scores = np.array([[1.0, 4.0], [0.0, 9.0]])
    assert (power(scores, 1.0) == scores).all()
    assert (power(scores, 0.5) == [[1.0, 2.0], [0.0, 3.0]]).all()


@pytest.mark.parametrize("exponent", [0.0, -1.0, float("nan"), float("inf")])
def test_an_exponent_that_is_none_is_refused(exponent):
    with pytest.raises(BudgetError, match="exponent"):
        power(np.ones((1, 1)), exponent)


def test_the_largest_of_a_group_stands_for_it():
    assert (group_max(np.array([[1.0, 3.0, 2.0, 0.0]]), 2) == [[3.0, 2.0]]).all()
    for shape, kv in (((1, 4), 3), ((1, 4), 0), ((4,), 2)):
        with pytest.raises(BudgetError, match="grouped"):
            group_max(np.ones(shape), kv)


@given(MATRICES, st.floats(0, 1))
def test_no_layer_is_below_its_floor_and_the_order_inside_stays(scores, floor):
    weights = layer_floor(scores, floor)
    assert weights.sum() == pytest.approx(1.0)
    assert (weights.sum(axis=1) >= floor / len(scores) - 1e-12).all()
    for before, after in zip(scores, weights, strict=True):
        order = np.argsort(before, kind="stable")
        assert (np.diff(after[order]) >= -1e-12).all()


def test_a_floor_of_zero_is_the_scores_and_of_one_is_all_layers_alike():
    scores = np.array([[1.0, 3.0], [0.0, 0.0]])
    assert np.allclose(layer_floor(scores, 0.0), scores / 4)
    assert np.allclose(layer_floor(scores, 1.0), [[0.125, 0.375], [0.25, 0.25]])


@pytest.mark.parametrize(
    ("scores", "floor"), [(np.ones((2, 2)), 1.1), (np.ones(2), 0.5), (-np.ones((2, 2)), 0.5), (np.ones((0, 2)), 0.5)]
)
def test_what_is_no_floor_or_no_scores_is_refused(scores, floor):
    with pytest.raises(BudgetError):
        layer_floor(scores, floor)
