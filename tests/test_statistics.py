"""Statistics against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.interval_coverage import covered
from sparsemm.errors import DataError
from sparsemm.statistics import Estimate, area, bootstrap_means, difference, estimate, interval

RNG = np.random.default_rng(7)


def test_an_estimate_is_what_resampling_one_by_one_gives():
    values = RNG.random(40)
    result = estimate(values, 4000, 0)
    padded, weights = np.append(values, [0.0, 1.0]), np.append(np.ones(40), [0.5, 0.5])
    drawn = RNG.integers(0, 42, (4000, 42))
    means = (padded * weights)[drawn].sum(1) / weights[drawn].sum(1)
    assert result.value == values.mean() and result.pages == 40
    assert (result.low, result.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)


def test_a_difference_is_paired():
    hard = RNG.random(50)
    result = difference(hard + 0.01, hard, 200, 0)
    alone = estimate(hard, 200, 0)
    assert result.value == pytest.approx(0.01) and result.high - result.low < (alone.high - alone.low) / 2
    with pytest.raises(DataError, match="paired"):
        difference(hard, hard[:9], 10, 0)


@pytest.mark.parametrize("n", [1, 2, 96])
def test_answers_that_are_all_alike_do_not_prove_that_others_would_be(n):
    result = difference(np.ones(n), np.ones(n), 2000, 0)
    assert result.value == 0 and result.low < 0 < result.high
    assert result.high == pytest.approx(0.02, abs=0.005) if n == 96 else result.high > 0.2
    right = estimate(np.ones(n), 2000, 0)
    assert right.low < 1 == right.high == right.value
    assert result.needed(0.05) > 2


def test_fewer_than_six_pages_show_no_difference():
    for differing, word in ((5, "no difference shown"), (6, "better")):
        values = np.zeros(8)
        values[:differing] = 1.0
        result = difference(values, np.zeros(8), 2000, 0)
        assert Estimate(result.value, result.low, result.high).verdict == word
        asked = np.repeat(np.arange(8), 5)  # five questions about each page are no more pages
        result = difference(np.repeat(values, 5), np.zeros(40), 2000, 0, asked)
        assert Estimate(result.value, result.low, result.high).verdict == word and result.pages == 8


@pytest.mark.parametrize(("n", "better", "worse"), [(8, 0.05, 0.02), (16, 0.03, 0.0), (32, 0.9, 0.0), (96, 0.05, 0.02)])
def test_intervals_cover_the_truth_where_answers_seldom_differ(n, better, worse):
    ours, _ = covered(n, better, worse, trials=200)
    assert ours >= 0.9


def test_pages_are_resampled_and_not_questions():
    pages = np.repeat(np.arange(12), 8)
    values = np.repeat(RNG.integers(0, 2, 12), 8).astype(float)
    alone, together = estimate(values, 2000, 0), estimate(values, 2000, 0, pages)
    one = estimate(values[::8], 2000, 0)
    assert (together.low, together.high) == pytest.approx((one.low, one.high))
    assert together.high - together.low > 2 * (alone.high - alone.low)
    uneven = estimate(np.append(values, 1.0), 500, 0, np.append(pages, 11))
    assert uneven.value == np.append(values, 1.0).mean() and uneven.pages == 12
    with pytest.raises(DataError, match="pages of"):
        estimate(values, 10, 0, pages[:5])


def test_a_metric_that_goes_beyond_one_has_ends_of_its_own():
    values = np.array([3.0] * 20)
    assert estimate(values, 1000, 0).low < 3.0 == estimate(values, 1000, 0).high
    assert difference(values, values, 1000, 0).high > difference(values / 3, values / 3, 1000, 0).high
    with pytest.raises(DataError, match="no samples"):
        estimate(np.zeros(0), 10, 0)


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
    assert Estimate(0.0, low, high).verdict == word


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
    result = estimate(area(values, budgets), 500, 3)
    counts = np.random.default_rng(3).multinomial(32, np.full(32, 1 / 32), size=500)
    weighted = np.column_stack([values, np.zeros(3), np.full(3, 0.5)])
    sizes = np.append(np.ones(30), [0.5, 0.5])
    areas = [area((weighted @ one / (sizes @ one))[:, None], budgets)[0] for one in counts]
    assert (result.low, result.high) == pytest.approx(np.quantile(areas, [0.025, 0.975]))


@pytest.mark.parametrize("budgets", [[], [1, 2], [4, 2, 8], [2, 2, 4]])
def test_budgets_that_are_no_axis_are_refused(budgets):
    with pytest.raises(DataError, match="budgets"):
        area(np.zeros((3, 5)), budgets)


def test_with_the_pages_needed_the_interval_is_as_wide_as_wanted():
    population = RNG.random(20_000)
    count = estimate(population[:400], 200, 0).needed(0.05)
    halves = []
    for trial in range(60):
        result = estimate(RNG.choice(population, count), 400, trial)
        halves.append((result.high - result.low) / 2)
    assert np.mean(halves) == pytest.approx(0.05, rel=0.1)


def test_no_precision_of_zero():
    with pytest.raises(DataError, match="half-width"):
        estimate(np.ones(3), 10, 0).needed(0.0)


def test_plain_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        low, high = interval(bootstrap_means(rng.random(60), 400, trial))
        covered += low <= 0.5 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_plain_resamples_are_paired():
    rng = np.random.default_rng(1)
    hard = rng.random(80)
    means = bootstrap_means(np.stack([hard, hard - 0.01]), 500, 0)
    low, high = interval(means[0] - means[1])
    assert low == pytest.approx(0.01) and high == pytest.approx(0.01)
    alone = interval(means[0])
    assert alone[1] - alone[0] > 0.05


def test_same_seed_same_interval_and_no_samples_are_refused():
    values = np.arange(10.0)
    assert np.array_equal(bootstrap_means(values, 50, 3), bootstrap_means(values, 50, 3))
    with pytest.raises(DataError, match="samples"):
        bootstrap_means(np.zeros((2, 0)), 10, 0)
