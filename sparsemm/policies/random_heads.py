"""Random: the SparseMM allocation from random head scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, ClassVar

import numpy as np

from sparsemm.budgets import Scores
from sparsemm.errors import BudgetError
from sparsemm.policies.per_row import PerRow
from sparsemm.policies.policy import ModelShape, Policy
from sparsemm.policies.sparsemm import SparseMM


def draw(seed: int, number: int) -> int:
    """Returns the seed of a page's random heads: another one for each page, the same in any batch and on any machine.

    Resampling pages then resamples draws too, so that an interval is about random heads, not about one draw of them.
    """
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def check_seed(seed: Any) -> None:
    """Raises BudgetError for a seed that is no whole number from 0 up."""
    if not isinstance(seed, Integral) or seed < 0:
        raise BudgetError(f"seed is {seed!r}", hint="use a whole number from 0 up")


@dataclass(frozen=True)
class RandomHeads(SparseMM):
    """Scores uniform in [0, 1): one matrix for the whole model, so that the total budget is conserved.

    Attributes:
        seed: of the scores, from 0 up.
    """

    seed: int = field(default=0, kw_only=True)
    needs_scores: ClassVar[bool] = False
    drawn: ClassVar[bool] = True
    summary: ClassVar[str] = "as sparsemm, with random scores"

    def __post_init__(self) -> None:
        """As `SparseMM`; raises BudgetError for an impossible seed too."""
        super().__post_init__()
        check_seed(self.seed)

    def head_scores(self, shape: ModelShape) -> Scores:
        """(L, Hkv) float64."""
        return np.random.default_rng(self.seed).random((len(shape.layers), shape.num_kv_heads))

    def for_pages(self, shape: ModelShape, pages: Sequence[int]) -> Policy:
        """Returns a policy for a batch of these pages, with random heads drawn anew for each page.

        Raises:
            BudgetError: if there is no page.
        """
        if not pages:
            raise BudgetError("no row to draw random heads for")
        rows = tuple(replace(self, seed=draw(self.seed, page)).for_model(shape) for page in pages)
        selector = self.selector.for_pages(pages)
        return PerRow(budget=self.budget, window=self.window, selector=selector, shape=shape, rows=rows)
