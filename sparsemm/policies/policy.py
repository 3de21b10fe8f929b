"""What every method shares: the shape of the model, the budget, and one decision to make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from sparsemm.budgets import Slots


@dataclass(frozen=True)
class Policy(ABC):
    """How many slots each KV head of a layer gets.

    Attributes:
        num_layers, num_kv_heads: shape of the model.
        budget: B, mean slots per KV head, window included.
        window: w, newest tokens every head keeps.
        observes: whether the attention of the last prompt rows is needed at all.
    """

    num_layers: int
    num_kv_heads: int
    budget: int
    window: int
    observes: ClassVar[bool] = True

    @abstractmethod
    def slots(self, layer: int, lengths: list[int], observed: torch.Tensor | None) -> Slots:
        """Slots of one layer.

        Args:
            layer: its index.
            lengths: tokens of each batch row's prompt, padding left out.
            observed: (B, Hkv, S) fp32 scores of `sparsemm.policies.observation.observe`, or None if not observed.

        Returns:
            (B, Hkv) int64, window included, at most the row's length.
        """

    def everything(self, lengths: list[int]) -> Slots:
        """(B, Hkv) int64: every head keeps every token."""
        return np.repeat(np.array(lengths, dtype=np.int64)[:, None], self.num_kv_heads, axis=1)
