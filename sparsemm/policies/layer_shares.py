"""Budgets of layers in proportion to something that each layer measures on the prompt."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from sparsemm.budgets import Slots, fill
from sparsemm.policies.policy import Policy
from sparsemm.policies.selector import Prompt


def layer_slots(shares: NDArray[np.float64], budget: int, window: int, length: int) -> Slots:
    """Returns slots per head of each layer, (L,) int64 with sum L * min(B, length).

    Every layer gets the window. The other B - w slots per layer are split in proportion to `shares` by largest
    remainder, and what a short prompt cannot use flows to the other layers.

    Args:
        shares: (L,) float64, not negative; all zero means even.
        budget: B, mean slots per KV head, window included.
        window: w.
        length: tokens of the prompt.
    """
    if length <= budget:
        return np.full(len(shares), length, dtype=np.int64)
    room = np.full(len(shares), length - window, dtype=np.int64)
    return window + fill(shares, (budget - window) * len(shares), room)


@dataclass(frozen=True, kw_only=True)
class LayerShares(Policy):
    """All heads of a layer get the same slots; layers share the budget by what they measure on the prompt.

    The cache calls `measure` for each layer, then `with_measured`, and splits the budget afterwards. In a later turn
    the layers keep the shares of the first prompt; if that was too short to be compressed, they share evenly.
    """

    _measured: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)  # (B, L)
    measures: ClassVar[bool] = True

    @abstractmethod
    def measure(self, prompt: Prompt) -> torch.Tensor:
        """Returns what one layer's share follows from, (B,) fp32; the prompt has the queries of every row."""

    def shares(self, measured: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns (L,) shares, not negative, from what the layers measured, (L,): the same, unless a method says so."""
        return measured

    def with_measured(self, measured: NDArray[np.float64] | None) -> Self:
        """Returns the policy for a prompt on which the layers have measured (B, L) float64; None for even shares."""
        return replace(self, _measured=measured)

    def for_rows(self, rows: Sequence[int]) -> Self:
        """Returns the policy with the measures of these rows."""
        return self if self._measured is None else self.with_measured(self._measured[list(rows)])

    def slots(self, layer: int, lengths: list[int], worth: torch.Tensor | None) -> Slots:
        """(B, Hkv) int64: the layer's share, the same for each head."""
        measured = np.ones((len(lengths), self.num_layers)) if self._measured is None else self._measured
        rows = zip(measured, lengths, strict=True)
        per_head = [layer_slots(self.shares(row), self.budget, self.window, length)[layer] for row, length in rows]
        return np.repeat(np.array(per_head, dtype=np.int64)[:, None], self.num_kv_heads, axis=1)
