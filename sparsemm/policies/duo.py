"""DuoAttention: the heads with the highest scores keep the whole prompt, the others its first and newest tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral
from typing import ClassVar

import numpy as np

from sparsemm.budgets import Slots, fill, normalized
from sparsemm.errors import BudgetError, PromptTooLong
from sparsemm.policies.selector import Selector
from sparsemm.policies.sparsemm import SparseMM
from sparsemm.policies.streaming import Recency


@dataclass(frozen=True)
class Duo(SparseMM):
    """Full heads and streaming heads (arXiv 2410.10819), with their number from the budget.

    Streaming heads keep window + first slots, and as many heads as the budget then has room for keep all S tokens,
    those with the highest scores, ties to the first. What is left, less than one full head needs, is split evenly
    among the streaming heads. The paper trains a gate per head; here any head scores serve.

    Attributes:
        first: slots of a streaming head beside its window, at least; its selector fills them with the first tokens.
    """

    selector: Selector = Recency()
    rho: float = field(default=0.0, init=False)
    power: float = field(default=1.0, init=False)
    mode: str = field(default="exact", init=False)
    first: int = field(default=4, kw_only=True)
    whole_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "the whole prompt for the heads with the highest scores, and a stream for the others"

    def __post_init__(self) -> None:
        """As `SparseMM`; raises BudgetError for an impossible `first` too."""
        super().__post_init__()
        if not isinstance(self.first, Integral) or self.first < 0:
            raise BudgetError(f"first is {self.first!r}", hint="use a number of slots from 0 up")

    def divide(self, length: int) -> Slots:
        """(L, Hkv) int64.

        Raises:
            PromptTooLong: if the budget has no room for a single full head.
        """
        shares = normalized(self.scores, self.budget, self.window)
        if length <= self.budget:
            return np.full(shares.shape, length, dtype=np.int64)
        least = min(self.window + self.first, self.budget)
        spare = (self.budget - least) * shares.size
        full = spare // (length - least)
        if full == 0:
            what = f"a full head of {length} tokens does not fit into a budget of {self.budget} slots per head"
            hint = f"{spare} slots are left beside {least} for each head: choose a larger budget, or another method"
            raise PromptTooLong(what, hint=hint)
        slots = np.full(shares.size, least, dtype=np.int64)
        slots[np.argsort(-shares.ravel(), kind="stable")[:full]] = length
        rest = self.budget * shares.size - int(slots.sum())
        return (slots + fill(np.ones(shares.size), rest, length - slots)).reshape(shares.shape)
