"""Random: the SparseMM allocation from random head scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsemm.budgets import Scores
from sparsemm.errors import BudgetError
from sparsemm.policies.sparsemm import SparseMM


@dataclass(frozen=True)
class RandomHeads(SparseMM):
    """As `SparseMM`, with `random_scores`."""

    needs_scores: ClassVar[bool] = False
    drawn: ClassVar[bool] = True


def random_scores(num_layers: int, num_heads: int, seed: int) -> Scores:
    """(L, H) float64 uniform in [0, 1): one matrix for the whole model, so that the total budget is conserved.

    Raises:
        BudgetError: if the seed is negative.
    """
    if seed < 0:
        raise BudgetError(f"seed is {seed}", hint="choose one from 0 up")
    return np.random.default_rng(seed).random((num_layers, num_heads))
