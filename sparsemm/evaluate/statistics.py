"""What paired samples say: estimates with intervals, areas under curves, verdicts, and how many samples are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from sparsemm.errors import DataError
from sparsemm.evaluate.metrics import Values, bootstrap_means, interval

VERDICTS = ("better", "worse", "no difference shown")
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over samples and its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float


def estimate(values: Values, resamples: int, seed: int) -> Estimate:
    """Mean of (n,) samples; the same seed resamples the same samples, so that differences stay paired.

    Raises:
        DataError: if there is no sample.
    """
    low, high = interval(bootstrap_means(values, resamples, seed), LEVEL)
    return Estimate(float(values.mean()), low, high)


def difference(mine: Values, other: Values, resamples: int, seed: int) -> Estimate:
    """Mean of `mine` minus `other`, (n,) each, sample by sample (Efron and Tibshirani, 1993).

    Raises:
        DataError: if the two are not of the same samples.
    """
    if mine.shape != other.shape:
        raise DataError(f"{mine.shape} samples cannot be paired with {other.shape}", where="difference")
    return estimate(mine - other, resamples, seed)


def verdict(low: float, high: float) -> str:
    """One of `VERDICTS`: what the interval of a difference says of what it is counted from."""
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


def samples_needed(differences: Values, half_width: float) -> int:
    """Samples after which the 95 % interval of their mean is +- `half_width`: (z s / h)^2, by the normal approximation.

    s is the standard deviation of the (n,) samples at hand; at least 2.

    Raises:
        DataError: if there are fewer than two samples, or `half_width` is not positive.
    """
    if len(differences) < 2 or half_width <= 0:
        raise DataError(f"{len(differences)} samples, half-width {half_width}", where="samples needed")
    z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    # Rounding of the variance must not push an exact whole number up.
    return max(2, math.ceil((z * float(differences.std(ddof=1)) / half_width) ** 2 - 1e-9))
