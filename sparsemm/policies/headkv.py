"""HeadKV: a pool of slots that heads share by their scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from typing import ClassVar

import numpy as np

from sparsemm.budgets import Slots, fill, normalized
from sparsemm.errors import BudgetError
from sparsemm.policies.sparsemm import SparseMM


@dataclass(frozen=True)
class HeadKV(SparseMM):
    """Slots w + (b - b // beta) + s (b // beta) L Hkv, with b = B - w and scores s of sum 1 (arXiv 2410.19258).

    The paper's scores are those of retrieval heads, which `sparsemm chase --text` makes for any model; scores of
    query heads are summed over the query group, where the public code gives each query head slots of its own. What a
    short prompt cannot hold flows to the other heads.

    Attributes:
        beta: one part in `beta` of the slots beyond the window is split by the scores.
    """

    rho: float = field(default=0.0, init=False)
    power: float = field(default=1.0, init=False)
    mode: str = field(default="exact", init=False)
    beta: float = field(default=1.5, kw_only=True)
    summary: ClassVar[str] = "a part of the slots for every head, and a pool by the score of the head"

    def __post_init__(self) -> None:
        """As `SparseMM`; raises BudgetError for a beta below 1 too."""
        super().__post_init__()
        if not isinstance(self.beta, Real) or not float(self.beta) >= 1.0:
            raise BudgetError(f"beta is {self.beta!r}", hint="use a number from 1 (all by the scores) up")

    def divide(self, length: int) -> Slots:
        """(L, Hkv) int64."""
        shares = normalized(self.scores, self.budget, self.window)
        if length <= self.budget:
            return np.full(shares.shape, length, dtype=np.int64)
        beyond = self.budget - self.window
        pool = int(beyond // self.beta)
        slots = np.full(shares.shape, self.budget - pool, dtype=np.int64)
        return slots + fill(shares, pool * shares.size, length - slots)
