"""PyramidKV: more slots for early layers, fewer for late ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from sparsemm.budgets import Slots
from sparsemm.policies.layer_shares import layer_slots
from sparsemm.policies.policy import Policy


@dataclass(frozen=True)
class PyramidKV(Policy):
    """A linear fall over the layers with mean B (arXiv 2406.02069, beta 20).

    Beyond the window, with base = B - w, layer l gets top - (top - bottom) * l / (L - 1) where bottom = base / beta
    and top = 2 * base - bottom. Totals are exact: largest remainder over the layers, and what a short prompt
    cannot use flows to the other layers.
    """

    beta: float = field(default=20.0, kw_only=True)
    summary: ClassVar[str] = "as snapkv, with more slots in the first layers and fewer in the last."

    def schedule(self, length: int) -> Slots:
        """(L,) int64 slots per head of each layer for a prompt of `length` tokens; sum L * min(B, length)."""
        base = self.budget - self.window
        bottom = base / self.beta
        shares = np.linspace(2 * base - bottom, bottom, self.num_layers)
        return layer_slots(shares, self.budget, self.window, length)

    def slots(self, layer: int, lengths: list[int], worth: torch.Tensor | None) -> Slots:
        """(B, Hkv) int64: the layer's share of the schedule."""
        per_head = np.array([self.schedule(length)[layer] for length in lengths], dtype=np.int64)
        return np.repeat(per_head[:, None], self.num_kv_heads, axis=1)
