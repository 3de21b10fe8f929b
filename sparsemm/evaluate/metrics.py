"""Scores of one prediction, and paired bootstrap intervals over many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsemm.errors import DataError

Values = NDArray[np.float64]


def word_accuracy(prediction: str, answer: str) -> float:
    """1 - word error rate, not below 0: (words - edits) / words with Levenshtein edits over blank-separated words.

    Raises:
        DataError: if the answer has no word.
    """
    said, wanted = prediction.split(), answer.split()
    if not wanted:
        raise DataError("the reference answer is empty", where="word_accuracy")
    row = list(range(len(said) + 1))
    for i, word in enumerate(wanted, start=1):
        above, row[0] = row[0], i
        for j, other in enumerate(said, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (word != other))
    return max(0.0, 1.0 - row[-1] / len(wanted))


def exact_match(prediction: str, answer: str) -> float:
    """1.0 if the prediction is the answer, blanks around it aside, else 0.0."""
    return float(prediction.strip() == answer.strip())


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
