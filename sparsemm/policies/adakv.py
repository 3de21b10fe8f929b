"""AdaKV: within a layer, slots go where the prompt's attention is concentrated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from sparsemm.budgets import Scores, Slots, fill
from sparsemm.policies.policy import Policy


def joint_counts(worth: torch.Tensor, total: int) -> Scores:
    """Returns how many of the `total` best entries of (H, S) each head holds, (H,) float64; ties go to the first."""
    best = torch.sort(worth.flatten(), descending=True, stable=True).indices[:total]
    return torch.bincount(best // worth.shape[-1], minlength=len(worth)).cpu().numpy().astype(np.float64)


@dataclass(frozen=True)
class AdaKV(Policy):
    """Per layer B * Hkv slots by the layer's joint top scores (arXiv 2407.11550).

    With base = B - w, the (base * Hkv) best observed positions of all heads together are counted per head; a head
    gets w + floor * base + (1 - floor) * count, as integers with an exact total per layer.
    """

    floor: float = field(default=0.2, kw_only=True)
    summary: ClassVar[str] = (
        "as snapkv, with slots that move between the heads of a layer by attention, anew for every prompt."
    )

    def slots(self, layer: int, lengths: list[int], worth: torch.Tensor | None) -> Slots:
        """(B, Hkv) int64."""
        result = self.everything(lengths)
        base = self.budget - self.window
        for row, length in enumerate(lengths):
            if length <= self.budget:
                continue
            if base == 0:
                result[row] = self.window
                continue
            assert worth is not None
            count = joint_counts(worth[row], base * self.num_kv_heads)
            shares = self.floor * base + (1.0 - self.floor) * count
            room = np.full(self.num_kv_heads, length - self.window, dtype=np.int64)
            result[row] = self.window + fill(shares, base * self.num_kv_heads, room)
        return result
