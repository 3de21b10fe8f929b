"""Measures how far two score tables of one model agree about its heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparsemm.evaluate.rows import COLUMNS, Row
from sparsemm.scores import ScoreTable
from sparsemm.statistics import interval

if TYPE_CHECKING:
    from sparsemm.studies.common.experiment import Experiment

RESAMPLES = 1000  # each ranks all heads again


def agreement(one: ScoreTable, other: ScoreTable, seed: int) -> dict[str, tuple[float, float, float]]:
    """Returns rank correlation and top 5 % overlap, each with its interval over resampled pages of both tables.

    Resampled tables are noisier than the tables themselves, so they agree less. They show how far the agreement varies.
    The interval is that range, shifted so that its median is the value, and cut at 1.
    """
    rng = np.random.default_rng(seed)
    resampled = np.array([_resampled(one, other, rng) for _ in range(RESAMPLES)])
    values = {"rank correlation": one.rank_correlation(other), "top 5 % overlap": one.top_overlap(other)}
    estimates = {}
    for i, (name, value) in enumerate(values.items()):
        low, high = interval(resampled[:, i] - np.median(resampled[:, i]) + value)
        estimates[name] = (value, low, min(high, 1.0))
    return estimates


def _resampled(one: ScoreTable, other: ScoreTable, rng: np.random.Generator) -> tuple[float, float]:
    tables = []
    for table in (one, other):
        n = len(table.per_sample)
        sample = table.per_sample[rng.integers(0, n, n)]
        tables.append(ScoreTable.from_samples(sample, np.zeros_like(table.hits), table.header))
    return tables[0].rank_correlation(tables[1]), tables[0].top_overlap(tables[1])


def agreement_rows(experiment: Experiment, name: str, one: ScoreTable, other: ScoreTable, seed: int) -> list[Row]:
    """Returns the rows of `agreement` between two tables, with the metric as condition and `name` as setting."""
    rows = []
    for metric, (value, low, high) in agreement(one, other, seed).items():
        row: Row = dict.fromkeys(COLUMNS, "") | {"model": experiment.key, "study": experiment.study, "task": "scores"}
        row |= {"condition": metric, "setting": name, "metric": metric, "value": round(value, 6), "seeds": 1}
        row |= {
            "n": len(other.per_sample),
            "pages": len(other.per_sample),
            "spread": 0.0,
            "ci_low": round(low, 6),
            "ci_high": round(high, 6),
        }
        rows.append(row)
    return rows
