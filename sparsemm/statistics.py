"""The statistics of the project: bootstrap intervals of paired samples, areas under curves, verdicts, pages needed.

Pages are what is resampled, because several questions about one image are answered rightly or wrongly together. Every
bootstrap of a metric also holds two pages of half a weight, one at each end of what the metric can be (Agresti and Min,
2005, do so for proportions). Otherwise 96 equal answers would have an interval without width.
`python -m tests.interval_coverage` prints how often the intervals contain the truth, with and without these two pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsemm.errors import DataError

LEVEL = 0.95
END_WEIGHT = 0.5  # of a page, for each end of the metric
FEWEST = 6  # pages that must differ: if 5 differ in one direction, even the exact sign test does not reach 95 %
BETTER, WORSE, UNDECIDED = VERDICTS = ("better", "worse", "no difference shown")

Values = NDArray[np.float64]
Pages = NDArray[np.int64]


class Estimate(NamedTuple):
    """A value with its 95 % interval. The ends are None if there is no interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def verdict(self) -> str | None:
        """Returns what the interval of a difference shows: one of `VERDICTS`, or None without an interval."""
        if self.low is None or self.high is None:
            return None
        return BETTER if self.low > 0 else WORSE if self.high < 0 else UNDECIDED

    def reversed(self) -> Estimate:
        """Returns the same difference with the opposite sign."""
        low, high = (None if end is None else -end + 0.0 for end in (self.high, self.low))  # + 0.0: no minus zero
        return Estimate(-self.value + 0.0, low, high)

    def text(self, sign: str = "") -> str:
        """Formats the value and its interval with three decimals; with `sign` "+" positive numbers have a sign too."""
        value = f"{self.value:{sign}.3f}"
        return value if self.low is None else f"{value} [{self.low:{sign}.3f}, {self.high:{sign}.3f}]"


@dataclass(frozen=True)
class Mean:
    """A mean over samples with its 95 % percentile bootstrap interval."""

    value: float  # low <= value <= high
    low: float
    high: float
    pages: int  # number of images that the samples are about
    deviation: float  # standard deviation of a page's contribution to the mean

    def needed(self, half_width: float) -> int:
        """Returns the number of pages at which the interval is +- `half_width`; at least 2.

        It is (z s / h)^2, by the normal approximation. Raises DataError if `half_width` is not positive.
        """
        if half_width <= 0:
            raise DataError(f"half-width {half_width}", where="pages needed", hint="give a positive one")
        z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
        # Rounding of the variance must not push an exact whole number up.
        return max(2, math.ceil((z * self.deviation / half_width) ** 2 - 1e-9))


def estimate(values: Values, resamples: int, seed: int, pages: Pages | None = None) -> Mean:
    """Returns the mean of (n,) samples of a metric between 0 and 1, or between 0 and the largest value.

    Args:
        values: one value per sample.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.
        pages: (n,) number of each sample's page; None if every sample has its own page.

    Raises:
        DataError: if there is no sample, or not one page per sample.
    """
    return _mean(values, (0.0, max(1.0, float(values.max(initial=0.0)))), resamples, seed, pages)


def difference(values: Values, others: Values, resamples: int, seed: int, pages: Pages | None = None) -> Mean:
    """Returns the mean of `values` minus `others`, (n,) each, paired by sample (Efron and Tibshirani, 1993).

    The interval contains zero unless at least `FEWEST` pages differ. The other arguments are those of `estimate`.
    Raises DataError if the two are not of the same samples, or as `estimate`.
    """
    if values.shape != others.shape:
        raise DataError(f"{values.shape} samples cannot be paired with {others.shape}", where="difference")
    top = max(1.0, float(values.max(initial=0.0)), float(others.max(initial=0.0)))
    result = _mean(values - others, (-top, top), resamples, seed, pages)
    sums, _ = _by_page(values - others, pages)
    if np.count_nonzero(np.abs(sums) > 1e-12) >= FEWEST:
        return result
    return Mean(result.value, min(result.low, 0.0), max(result.high, 0.0), result.pages, result.deviation)


def page_numbers(names: Sequence[str]) -> Pages:
    """Returns (n,) int64 numbers that are equal where the names of the pages are equal."""
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)


def _mean(values: Values, ends: tuple[float, float], resamples: int, seed: int, pages: Pages | None) -> Mean:
    if not len(values):
        raise DataError("no samples to resample", where="bootstrap")
    sums, sizes = _by_page(values, pages)
    weight = END_WEIGHT * sizes.mean()
    sums = np.append(sums, np.multiply(ends, weight))
    sizes = np.append(sizes, [weight, weight])
    counts = _counts(len(sums), resamples, seed)
    low, high = interval((counts @ sums) / (counts @ sizes))
    real = len(sums) - 2
    shares = (sums - sums.sum() / sizes.sum() * sizes) / sizes[:real].mean()
    value = float(values.mean())
    return Mean(value, min(low, value), max(high, value), real, math.sqrt(float((shares**2).sum()) / real))


def _by_page(values: Values, pages: Pages | None) -> tuple[Values, Values]:
    """Returns the sum and the number of the samples of every page."""
    if pages is None:
        return values, np.ones(len(values))
    if pages.shape != values.shape:
        raise DataError(f"{len(pages)} pages of {len(values)} samples", where="bootstrap")
    at = np.unique(pages, return_inverse=True)[1]
    return np.bincount(at, values).astype(np.float64), np.bincount(at).astype(np.float64)


@lru_cache(maxsize=4)  # every row of a table needs the same counts, and drawing them takes most of the time
def _counts(n: int, resamples: int, seed: int) -> Values:
    """Returns how often every resample contains every page, (resamples, n), read-only."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=resamples).astype(np.float64)
    counts.flags.writeable = False
    return counts


def bootstrap_means(values: Values, resamples: int, seed: int) -> Values:
    """Returns (..., resamples) means of `values` (..., n) over plain resamples of the n samples with replacement.

    Rows share the resampled indices, so differences between rows are paired (Efron and Tibshirani, 1993). Raises
    DataError if there is no sample.
    """
    n = values.shape[-1]
    if n == 0:
        raise DataError("no samples to resample", where="bootstrap")
    return values @ _counts(n, resamples, seed).T / n


def interval(values: Values) -> tuple[float, float]:
    """Returns the 95 % percentile interval of (resamples,) resampled values."""
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def area(values: Values, budgets: Sequence[int]) -> Values:
    """Returns the area under accuracy over log2(budget) of every sample, divided by its width: a mean accuracy.

    The area is linear in the samples, so the bootstrap of its mean is the bootstrap of the area under the mean curve.

    Args:
        values: (budgets, n) accuracies.
        budgets: increasing, without repeats.

    Returns:
        (n,) areas by the trapezoidal rule; with a single budget, the values there.

    Raises:
        DataError: if budgets and values do not fit.
    """
    if len(budgets) != len(values) or not len(budgets) or list(budgets) != sorted(set(budgets)):
        raise DataError(f"{len(values)} rows of values for budgets {list(budgets)}", where="area under the curve")
    at = np.log2(np.asarray(budgets, dtype=np.float64))
    if len(at) == 1:
        return values[0].astype(np.float64)
    return np.trapezoid(values, at, axis=0) / (at[-1] - at[0])
