"""Statistics against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from sparsemm.errors import DataError
from sparsemm.evaluate.statistics import area, difference, estimate, samples_needed, verdict

RNG = np.random.default_rng(7)


def test_an_estimate_is_what_resampling_one_by_one_gives():
    values = RNG.random(40)
    found = estimate(values, 4000, 0)
    means = [values[RNG.integers(0, 40, 40)].mean() for _ in range(4000)]
    assert found.value == values.mean()
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)


def test_a_difference_is_paired():
    hard = RNG.random(50)
    found = difference(hard + 0.01, hard, 200, 0)
    assert (found.value, found.low, found.high) == pytest.approx((0.01, 0.01, 0.01))
    alone = estimate(hard, 200, 0)
    assert alone.high - alone.low > 0.05
    with pytest.raises(DataError, match="paired"):
        difference(hard, hard[:9], 10, 0)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.1, 0.2, "better"),
        (-0.2, -0.1, "worse"),
        (-0.1, 0.1, "no difference shown"),
        (0.0, 0.1, "no difference shown"),
        (-0.1, 0.0, "no difference shown"),
    ],
)
def test_a_verdict_wants_an_interval_without_zero(low, high, word):
    assert verdict(low, high) == word


def test_the_area_is_the_mean_over_the_log_budget():
    budgets = [8, 16, 64]
    values = RNG.random((3, 20))
    fine = np.linspace(3.0, 6.0, 30001)
    wanted = [np.interp(fine, [3, 4, 6], column).mean() for column in values.T]
    assert area(values, budgets) == pytest.approx(np.array(wanted), abs=1e-4)
    assert area(np.full((3, 2), 0.5), budgets) == pytest.approx(0.5)
    assert np.array_equal(area(values[:1], [12]), values[0])


def test_the_interval_of_an_area_is_that_of_the_mean_curve():
    budgets, values = [4, 8, 32], RNG.random((3, 30))
    found = estimate(area(values, budgets), 500, 3)
    counts = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), size=500)
    areas = [area((values @ one / 30)[:, None], budgets)[0] for one in counts]
    assert (found.low, found.high) == pytest.approx(np.quantile(areas, [0.025, 0.975]))


@pytest.mark.parametrize("budgets", [[], [1, 2], [4, 2, 8], [2, 2, 4]])
def test_budgets_that_are_no_axis_are_refused(budgets):
    with pytest.raises(DataError, match="budgets"):
        area(np.zeros((3, 5)), budgets)


def test_with_the_samples_needed_the_interval_is_as_wide_as_wanted():
    population = RNG.normal(0.1, 0.3, 20_000)
    count = samples_needed(population[:400], 0.05)
    halves = []
    for trial in range(60):
        found = estimate(RNG.choice(population, count), 400, trial)
        halves.append((found.high - found.low) / 2)
    assert np.mean(halves) == pytest.approx(0.05, rel=0.1)
    assert samples_needed(np.ones(5), 0.01) == 2


def test_no_precision_from_one_sample_or_of_zero():
    for values, half in ((np.ones(1), 0.1), (np.ones(3), 0.0)):
        with pytest.raises(DataError, match="half-width"):
            samples_needed(values, half)
