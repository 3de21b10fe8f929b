"""Scores of predictions, and intervals."""

from __future__ import annotations

import numpy as np
import pytest

from sparsemm.errors import DataError
from sparsemm.evaluate.tasks.functions import exact_match, word_accuracy
from sparsemm.statistics import bootstrap_means, interval


@pytest.mark.parametrize(
    ("said", "wanted", "value"),
    [
        ("a b c d", "a b c d", 1.0),
        ("a b d", "a b c d", 0.75),
        ("a b x d", "a b c d", 0.75),
        ("a b c c d", "a b c d", 0.75),
        ("", "a b", 0.0),
        ("x y z w q", "a b", 0.0),
        ("b a", "a b", 0.0),
    ],
)
def test_word_accuracy(said, wanted, value):
    assert word_accuracy(said, wanted) == pytest.approx(value)


def test_an_empty_reference_is_refused():
    with pytest.raises(DataError, match="empty"):
        word_accuracy("a", " ")


def test_exact_match():
    assert exact_match(" ab\n", "ab") == 1.0 and exact_match("ab", "abc") == 0.0


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        low, high = interval(bootstrap_means(rng.random(60), 400, trial))
        covered += low <= 0.5 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_differences_are_paired():
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
