"""SparseMM: slots in proportion to how often a head looks at the image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from sparsemm.budgets import Scores, Slots, allocate, allocate_paper
from sparsemm.policies.policy import Policy

REMEMBERED = 256  # prompt lengths: every layer asks again, and a policy may serve any number of prompts


@dataclass(frozen=True)
class SparseMM(Policy):
    """Window, uniform part and score part (arXiv 2506.05344, section 3.2).

    Attributes:
        scores: (L, Hkv) float64 visual scores, query groups summed.
        rho: share beyond the window that is split evenly.
        mode: "exact" (exact totals, overflow flows on) or "paper" (the public code's arithmetic).
    """

    needs_scores: ClassVar[bool] = True
    scores: Scores = field(default_factory=lambda: np.zeros((0, 0)))
    rho: float = 0.1
    mode: str = "exact"
    _seen: dict[int, Slots] = field(default_factory=dict, repr=False, compare=False)

    def matrix(self, length: int) -> Slots:
        """(L, Hkv) int64 slots for a prompt of `length` tokens."""
        found = self._seen.get(length)
        if found is None:
            split = allocate if self.mode == "exact" else allocate_paper
            found = split(self.scores, self.budget, self.window, self.rho, length)
            if len(self._seen) >= REMEMBERED:
                self._seen.clear()
            self._seen[length] = found
        return found

    def slots(self, layer: int, lengths: list[int], observed: torch.Tensor | None) -> Slots:
        """(B, Hkv) int64: the layer's row of the allocation for each prompt length."""
        return np.stack([self.matrix(length)[layer] for length in lengths])
