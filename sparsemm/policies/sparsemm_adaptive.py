"""SparseMM, adaptive: static visual budgets per layer, split within it by scores and by the prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from sparsemm.budgets import Slots, fill
from sparsemm.policies.adakv import joint_counts
from sparsemm.policies.policy import check_share
from sparsemm.policies.sparsemm import SparseMM


@dataclass(frozen=True)
class SparseMMAdaptive(SparseMM):
    """The layer totals of SparseMM, with half of each layer's split left to the prompt as in AdaKV.

    With b[l,h] the slots of `sparsemm` for this prompt length and T[l] = sum over h of b[l,h] - w: c[l,h] counts the
    head's share of the layer's T[l] jointly best observed positions, and the head gets

        w + (1 - adapt) * (b[l,h] - w) + adapt * c[l,h]

    as integers whose sum is exactly T[l] + w * Hkv. Totals per layer are static, so a layer can be compressed before
    the next one has run.

    Attributes:
        adapt: share of the split that follows the prompt: 0 is `sparsemm`, 1 lets only layer totals be static.
    """

    mode: str = field(default="exact", init=False)
    adapt: float = field(default=0.5, kw_only=True)
    summary: ClassVar[str] = "as sparsemm, with part of each layer's slots moved between its heads by the prompt."

    def __post_init__(self) -> None:
        """As `SparseMM`; raises BudgetError for an adapt outside [0, 1] too."""
        super().__post_init__()
        check_share("adapt", self.adapt)

    def slots(self, layer: int, lengths: list[int], worth: torch.Tensor | None) -> Slots:
        """(B, Hkv) int64."""
        result = super().slots(layer, lengths, worth)
        for row, length in enumerate(lengths):
            static = result[row] - self.window
            if length <= self.budget or static.sum() == 0:
                continue
            assert worth is not None
            total = int(static.sum())
            shares = (1.0 - self.adapt) * static + self.adapt * joint_counts(worth[row], total)
            result[row] = self.window + fill(shares, total, np.full_like(static, length - self.window))
        return result
