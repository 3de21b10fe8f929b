"""SnapKV: the same number of slots for every head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from sparsemm.budgets import Slots
from sparsemm.policies.policy import Policy


@dataclass(frozen=True)
class SnapKV(Policy):
    """Uniform B (arXiv 2404.14469)."""

    summary: ClassVar[str] = "the same slots for every head, filled with what the window attends to."

    def slots(self, layer: int, lengths: list[int], worth: torch.Tensor | None) -> Slots:
        """(B, Hkv) int64: min(B, length)."""
        return np.minimum(self.everything(lengths), self.budget)
