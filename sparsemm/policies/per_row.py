"""A batch whose rows have policies of their own: evaluation draws random heads for each page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch

from sparsemm.budgets import Slots
from sparsemm.errors import BudgetError
from sparsemm.policies.policy import Policy


@dataclass(frozen=True)
class PerRow(Policy):
    """Gives each row the slots of its own policy; budget, window and selector are the same for all.

    Attributes:
        rows: B policies of one kind, shape, budget and window, whose slots do not depend on the prompt's content.
    """

    rows: tuple[Policy, ...] = field(default=(), repr=False, kw_only=True)

    def for_rows(self, rows: Sequence[int]) -> Self:
        """Returns a policy of the policies of these rows."""
        return replace(self, rows=tuple(self.rows[row] for row in rows))

    def slots(self, layer: int, lengths: list[int], worth: torch.Tensor | None) -> Slots:
        """(B, Hkv) int64.

        Raises:
            BudgetError: if there is not one policy per row.
        """
        if len(lengths) != len(self.rows):
            raise BudgetError(f"{len(self.rows)} policies for a batch of {len(lengths)} rows")
        return np.concatenate(
            [one.slots(layer, [length], None) for one, length in zip(self.rows, lengths, strict=True)]
        )
