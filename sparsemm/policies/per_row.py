"""A policy for every batch row: what evaluation needs to ask every page with random heads of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from sparsemm.budgets import Slots
from sparsemm.errors import BudgetError
from sparsemm.policies.policy import Policy


@dataclass(frozen=True)
class PerRow(Policy):
    """Each row's slots as its own policy gives them; scores and window as all of them have.

    Attributes:
        rows: B policies of one kind, shape, budget and window, whose slots do not depend on the prompt's content.
    """

    rows: tuple[Policy, ...] = field(default=(), repr=False)

    @property
    def compresses(self) -> bool:  # type: ignore[override]
        """As the rows' policies."""
        return self.rows[0].compresses

    @property
    def every_row(self) -> bool:  # type: ignore[override]
        """As the rows' policies."""
        return self.rows[0].every_row

    def slots(self, layer: int, lengths: list[int], observed: torch.Tensor | None) -> Slots:
        """(B, Hkv) int64.

        Raises:
            BudgetError: if there is not one policy per row.
        """
        if len(lengths) != len(self.rows):
            raise BudgetError(f"{len(self.rows)} policies for a batch of {len(lengths)} rows")
        return np.concatenate(
            [one.slots(layer, [length], None) for one, length in zip(self.rows, lengths, strict=True)]
        )

    def rate(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        valid: torch.Tensor,
        window: int,
        pooling_kernel: int,
        scaling: float,
    ) -> torch.Tensor:
        """(B, Hkv, S) fp32, as the rows' policies."""
        return self.rows[0].rate(query, key, valid, window, pooling_kernel, scaling)

    def watch(self, worth: torch.Tensor, weights: torch.Tensor, age: torch.Tensor, since: torch.Tensor) -> torch.Tensor:
        """(rows,) fp32, as the rows' policies."""
        return self.rows[0].watch(worth, weights, age, since)


def draw(seed: int, number: int) -> int:
    """The seed of a page's random heads: another one for every page, the same in every batch and on every machine.

    Resampling pages then resamples draws too, so that an interval speaks of random heads and not of some that were
    drawn once.
    """
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def drawn_anew(make: Callable[[int], Policy], seed: int, numbers: Sequence[int]) -> PerRow:
    """`make(seed)` for every row, with the seed of the page of that number.

    Raises:
        BudgetError: as `make`, or if there is no row.
    """
    rows = tuple(make(draw(seed, number)) for number in numbers)
    if not rows:
        raise BudgetError("no row to draw random heads for")
    first = rows[0]
    return PerRow(first.num_layers, first.num_kv_heads, first.budget, first.window, rows)
