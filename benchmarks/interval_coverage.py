"""How often 95 % intervals of a paired difference hold the truth: `python -m benchmarks.interval_coverage`, a minute.

It prints JSON; that of the present code is artifacts/benchmarks/interval-coverage.json.

Exact matches of n pages, of which one method alone has `better` right and the other alone `worse`, drawn many times;
with the intervals of the evaluation and with those of the plain bootstrap of the differences.
"""

from __future__ import annotations

import json
from itertools import product

import numpy as np

from sparsemm.statistics import bootstrap_means, difference, interval

PAGES = (8, 16, 32, 96)
RATES = ((0.01, 0.0), (0.03, 0.0), (0.05, 0.02), (0.1, 0.1), (0.3, 0.05), (0.5, 0.1), (0.9, 0.0))
TRIALS, RESAMPLES = 400, 600


def covered(pages: int, better: float, worse: float, trials: int = TRIALS) -> tuple[float, float]:
    """Shares of trials whose interval holds `better - worse`: of the evaluation's, and of the plain bootstrap's."""
    hits = np.zeros(2)
    for trial in range(trials):
        drawn = np.random.default_rng(trial).random(pages)
        alone = drawn < better, (drawn >= better) & (drawn < better + worse)
        one, other = (right.astype(np.float64) for right in alone)
        result = difference(one, other, RESAMPLES, trial)
        plain = interval(bootstrap_means(one - other, RESAMPLES, trial))
        for i, (low, high) in enumerate([(result.low, result.high), plain]):
            hits[i] += low - 1e-9 <= better - worse <= high + 1e-9
    ours, plain_share = hits / trials
    return float(ours), float(plain_share)


def measure() -> list[dict[str, float]]:
    """Returns the shares of every case."""
    rows = []
    for pages, (better, worse) in product(PAGES, RATES):
        evaluation, plain = covered(pages, better, worse)
        rows.append({"pages": pages, "better": better, "worse": worse, "evaluation": evaluation, "plain": plain})
    return rows


if __name__ == "__main__":
    print(json.dumps({"trials": TRIALS, "resamples": RESAMPLES, "rows": measure()}, indent=2))
