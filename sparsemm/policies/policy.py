"""What every method shares: the shape of the model, the budget, and one decision to make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from sparsemm.budgets import Slots
from sparsemm.policies.observation import observe


@dataclass(frozen=True)
class Policy(ABC):
    """How many slots each KV head of a layer gets, and what a position is worth.

    Attributes:
        num_layers, num_kv_heads: shape of the model.
        budget: B, mean slots per KV head, window included.
        window: w, newest tokens every head keeps.
        compresses: whether anything is ever evicted.
        every_row: whether `rate` wants every row of the prompt, not the last `window`.
        needs_scores: whether it is made of head scores.
        drawn: whether its head scores are drawn at random, which evaluation does anew for every page.
    """

    num_layers: int
    num_kv_heads: int
    budget: int
    window: int
    compresses: ClassVar[bool] = True
    every_row: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False
    drawn: ClassVar[bool] = False

    @abstractmethod
    def slots(self, layer: int, lengths: list[int], observed: torch.Tensor | None) -> Slots:
        """Slots of one layer.

        Args:
            layer: its index.
            lengths: tokens of each batch row's prompt, padding left out.
            observed: (B, Hkv, S) fp32 as from `rate`, or None if nothing is evicted.

        Returns:
            (B, Hkv) int64, window included, at most the row's length.
        """

    def rate(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        valid: torch.Tensor,
        window: int,
        pooling_kernel: int,
        scaling: float,
    ) -> torch.Tensor:
        """What every position is worth to its head: SnapKV's observation scores, unless a method says otherwise.

        Args, Returns: as `sparsemm.policies.observation.observe`.
        """
        return observe(query, key, valid, window, pooling_kernel, scaling)

    def watch(self, worth: torch.Tensor, weights: torch.Tensor, age: torch.Tensor, since: torch.Tensor) -> torch.Tensor:
        """What every kept row is worth after one more token, for `hold_budget`.

        Unless a method says otherwise: a row's mean attention while it was in the window, frozen when it leaves;
        rows of the prompt that were outside the window keep their observation score, which is such a mean too.

        Args:
            worth: (rows,) fp32 of the rows of all heads so far; zero for the newest token.
            weights: (rows,) fp32, the new token's attention, mean over the query group.
            age: (rows,) int32 tokens after this one.
            since: (rows,) int32 tokens since the prompt was compressed, this one included.
        """
        steps = torch.minimum(age + 1, since)
        return torch.where(age < self.window, worth + (weights - worth) / steps, worth)

    def everything(self, lengths: list[int]) -> Slots:
        """(B, Hkv) int64: every head keeps every token."""
        return np.repeat(np.array(lengths, dtype=np.int64)[:, None], self.num_kv_heads, axis=1)
