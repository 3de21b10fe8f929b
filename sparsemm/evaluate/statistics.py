"""What paired samples say: estimates with intervals, areas under curves, verdicts, and how many pages are needed.

Pages are what is resampled: several questions about one image stand or fall together. Every bootstrap also holds two
pages of half a weight, one at each end of what the metric can be (Agresti and Min, 2005, do so for proportions):
otherwise 96 answers that are all alike would have an interval without width (`python tests/evaluate/coverage.py` prints
how often the truth is inside, with and without them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from sparsemm.errors import DataError

LEVEL = 0.95
END_WEIGHT = 0.5  # of a page, for each end of the metric
FEWEST = 6  # pages that differ, all one way: with 5 even the exact sign test does not reach 95 %

Values = NDArray[np.float64]
Pages = NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A mean over samples and its 95 % percentile bootstrap interval.

    Attributes:
        value, low, high: low <= value <= high.
        pages: images that the samples are about.
        deviation: standard deviation of a page's share in the mean.
    """

    value: float
    low: float
    high: float
    pages: int
    deviation: float

    def needed(self, half_width: float) -> int:
        """Pages after which the interval is +- `half_width`: (z s / h)^2, by the normal approximation; at least 2.

        Raises:
            DataError: if `half_width` is not positive.
        """
        if half_width <= 0:
            raise DataError(f"half-width {half_width}", where="pages needed", hint="give a positive one")
        z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
        # Rounding of the variance must not push an exact whole number up.
        return max(2, math.ceil((z * self.deviation / half_width) ** 2 - 1e-9))


def estimate(values: Values, resamples: int, seed: int, pages: Pages | None = None) -> Estimate:
    """Mean of (n,) samples of a metric that is 0 at least, and 1 at most or what it reaches here.

    Args:
        pages: (n,) number of each sample's page; None if every sample has its own.

    Raises:
        DataError: if there is no sample, or not one page per sample.
    """
    return _mean(values, (0.0, max(1.0, float(values.max(initial=0.0)))), resamples, seed, pages)


def difference(mine: Values, other: Values, resamples: int, seed: int, pages: Pages | None = None) -> Estimate:
    """Mean of `mine` minus `other`, (n,) each, sample by sample (Efron and Tibshirani, 1993).

    The interval holds zero unless at least `FEWEST` pages differ.

    Raises:
        DataError: if the two are not of the same samples, or as `estimate`.
    """
    if mine.shape != other.shape:
        raise DataError(f"{mine.shape} samples cannot be paired with {other.shape}", where="difference")
    top = max(1.0, float(mine.max(initial=0.0)), float(other.max(initial=0.0)))
    found = _mean(mine - other, (-top, top), resamples, seed, pages)
    sums, _ = _by_page(mine - other, pages)
    if np.count_nonzero(np.abs(sums) > 1e-12) >= FEWEST:
        return found
    return Estimate(found.value, min(found.low, 0.0), max(found.high, 0.0), found.pages, found.deviation)


def page_numbers(names: Sequence[str]) -> Pages:
    """(n,) int64: samples about the same page have the same number."""
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)


def _mean(values: Values, ends: tuple[float, float], resamples: int, seed: int, pages: Pages | None) -> Estimate:
    if not len(values):
        raise DataError("no samples to resample", where="bootstrap")
    sums, sizes = _by_page(values, pages)
    weight = END_WEIGHT * sizes.mean()
    sums = np.append(sums, np.multiply(ends, weight))
    sizes = np.append(sizes, [weight, weight])
    counts = _counts(len(sums), resamples, seed)
    low, high = interval((counts @ sums) / (counts @ sizes), LEVEL)
    real = len(sums) - 2
    shares = (sums - sums.sum() / sizes.sum() * sizes) / sizes[:real].mean()
    value = float(values.mean())
    return Estimate(value, min(low, value), max(high, value), real, math.sqrt(float((shares**2).sum()) / real))


def _by_page(values: Values, pages: Pages | None) -> tuple[Values, Values]:
    """Sum and number of the samples of every page."""
    if pages is None:
        return values, np.ones(len(values))
    if pages.shape != values.shape:
        raise DataError(f"{len(pages)} pages of {len(values)} samples", where="bootstrap")
    at = np.unique(pages, return_inverse=True)[1]
    return np.bincount(at, values).astype(np.float64), np.bincount(at).astype(np.float64)


@lru_cache(maxsize=4)  # a table asks for the same ones in every row, and drawing them is what takes time
def _counts(n: int, resamples: int, seed: int) -> Values:
    """How often every resample holds every page: (resamples, n), read-only."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=resamples).astype(np.float64)
    counts.flags.writeable = False
    return counts


def bootstrap_means(values: Values, resamples: int, seed: int) -> Values:
    """Means of `values` (..., n) over resamples of the n samples with replacement: (..., resamples).

    Rows share the resampled indices, so differences between rows are paired (Efron and Tibshirani, 1993).

    Raises:
        DataError: if there is no sample.
    """
    n = values.shape[-1]
    if n == 0:
        raise DataError("no samples to resample", where="bootstrap")
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=resamples)
    return values @ counts.T / n


def interval(means: Values, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled means (resamples,)."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


def verdict(low: float, high: float) -> str:
    """One of `sparsemm.tables.VERDICTS`: what the interval of a difference says of what it is counted from."""
    return "better" if low > 0 else "worse" if high < 0 else "no difference shown"


def area(values: Values, budgets: Sequence[int]) -> Values:
    """Area under accuracy over log2(budget) of every sample, divided by its width: a mean accuracy.

    Linear in the samples, so that the bootstrap of its mean is the bootstrap of the area under the mean curve.

    Args:
        values: (budgets, n).
        budgets: rising, not repeated.

    Returns:
        (n,): trapezoids; with a single budget, the values there.

    Raises:
        DataError: if budgets and values do not fit.
    """
    if len(budgets) != len(values) or not len(budgets) or list(budgets) != sorted(set(budgets)):
        raise DataError(f"{len(values)} rows of values for budgets {list(budgets)}", where="area under the curve")
    at = np.log2(np.asarray(budgets, dtype=np.float64))
    if len(at) == 1:
        return values[0].astype(np.float64)
    return np.trapezoid(values, at, axis=0) / (at[-1] - at[0])
