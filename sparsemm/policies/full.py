"""Keep everything."""

from __future__ import annotations

import torch

from sparsemm.budgets import Slots
from sparsemm.policies.policy import Policy


class Full(Policy):
    """Every head keeps every token; the budget is ignored."""

    compresses = False

    def slots(self, layer: int, lengths: list[int], observed: torch.Tensor | None) -> Slots:
        """(B, Hkv) int64: the length of each row."""
        return self.everything(lengths)
