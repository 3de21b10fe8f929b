"""Which positions a head keeps, given its number of slots: what a selector says, and the choice itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True)
class Selector(ABC):
    """What a position of the prompt is worth to its head; any selector goes with any policy.

    Attributes:
        every_row: whether `rate` wants every row of the prompt, not the last `window`.
    """

    every_row: ClassVar[bool] = False

    @abstractmethod
    def rate(
        self, query: torch.Tensor, key: torch.Tensor, valid: torch.Tensor, window: int, scaling: float
    ) -> torch.Tensor:
        """What every position is worth.

        Args:
            query: (B, Hq, S, D) post-RoPE.
            key: (B, Hkv, S, D) post-RoPE.
            valid: (B, S) bool, false on left padding.
            window: w, at least 1: newest rows, which are kept whatever they are worth.
            scaling: factor of the logits, 1 / sqrt(D).

        Returns:
            (B, Hkv, S) fp32; -inf on padding.
        """

    def update(
        self, worth: torch.Tensor, weights: torch.Tensor, age: torch.Tensor, since: torch.Tensor, window: int
    ) -> torch.Tensor:
        """What every kept row is worth after one more token, for `hold_budget`.

        Unless a selector says otherwise: a row's mean attention while it was in the window, frozen when it leaves;
        rows of the prompt that were outside the window keep their observation score, which is such a mean too.

        Args:
            worth: (rows,) fp32 of the rows of all heads so far; zero for the newest token.
            weights: (rows,) fp32, the new token's attention, mean over the query group.
            age: (rows,) int32 tokens after this one.
            since: (rows,) int32 tokens since the prompt was compressed, this one included.
            window: w.
        """
        steps = torch.minimum(age + 1, since)
        return torch.where(age < window, worth + (weights - worth) / steps, worth)


def select(worth: torch.Tensor, valid: torch.Tensor, slots: torch.Tensor, window: int) -> torch.Tensor:
    """Positions every head keeps: the newest `window`, then the most worth, ties to the lowest position.

    Args:
        worth: (B, Hkv, S) as from `Selector.rate`.
        valid: (B, S) bool, false on left padding.
        slots: (B, Hkv) int64, window included; a head with at least as many slots as tokens keeps them all.
        window: w.

    Returns:
        (B, Hkv, S) bool.
    """
    length = valid.shape[-1]
    at = torch.arange(length, dtype=torch.int64, device=valid.device)
    inside = valid & (at >= length - window)
    # The window ranks before everything, padding after everything.
    ranked = worth.masked_fill(inside[:, None], float("inf")).masked_fill(~valid[:, None], float("-inf"))
    order = torch.sort(ranked, dim=-1, descending=True, stable=True).indices
    # Few slots and a wide window: the newest tokens go first.
    rank = torch.empty_like(order).scatter_(-1, order, at.expand_as(order))
    newest = inside.flip(-1).cumsum(-1).flip(-1) - 1
    rank = torch.where(inside[:, None], newest[:, None], rank)
    return (rank < slots[..., None]) & valid[:, None]
