"""H2O: the newest tokens, and the ones that all rows together looked at most."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from sparsemm.policies.policy import ModelShape
from sparsemm.policies.selector import Selector
from sparsemm.policies.snapkv import SnapKV

CHUNK = 1 << 24  # logits held at once


@dataclass(frozen=True)
class AccumulatedAttention(Selector):
    """The sum of A[i, j] over every row i >= j of the prompt (arXiv 2306.14048).

    Padding rows are left out, each row has equal weight; not pooled; mean over the query group;
    A = softmax(q k^T * scaling), causal, in fp32. In a later turn the rows are that turn's.
    """

    every_row: ClassVar[bool] = True

    def rate(
        self, query: torch.Tensor, key: torch.Tensor, valid: torch.Tensor, window: int, scaling: float
    ) -> torch.Tensor:
        """(B, Hkv, S) fp32, a chunk of rows at a time, so that no (S, S) tensor exists; O(S^2) time."""
        batch, num_heads, rows, _ = query.shape
        num_kv_heads, length = key.shape[1], key.shape[2]
        grouped = query.unflatten(1, (num_kv_heads, -1))
        total = torch.zeros(batch, num_kv_heads, length, dtype=torch.float32, device=key.device)
        at = torch.arange(length, dtype=torch.int64, device=key.device)
        first = length - rows  # position of the first row
        step = max(CHUNK // max(batch * num_heads * length, 1), 1)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            end = first + stop
            part = grouped[..., start:stop, :].float()
            logits = torch.einsum("bhgrd,bhkd->bhgrk", part, key[:, :, :end].float()) * scaling
            seen = (at[:end] <= at[first + start : end, None]) & valid[:, None, :end]
            weights = torch.softmax(logits.masked_fill(~seen[:, None, None], float("-inf")), dim=-1).nan_to_num(0.0)
            total[..., :end] += weights.sum(dim=-2).mean(dim=2)
        return total.masked_fill(~valid[:, None], float("-inf"))

    def update(
        self, worth: torch.Tensor, weights: torch.Tensor, age: torch.Tensor, since: torch.Tensor, window: int
    ) -> torch.Tensor:
        """The new token's attention is added to every row's sum."""
        return worth + weights


@dataclass(frozen=True, kw_only=True)
class H2O(SnapKV):
    """Uniform B: half newest tokens, half heavy hitters (arXiv 2306.14048). Its window is max(w, B // 2)."""

    selector: Selector = AccumulatedAttention()
    summary: ClassVar[str] = (
        "the same slots for every head, filled with the newest tokens and those that all rows attend to most."
    )

    def for_model(self, shape: ModelShape) -> Self:
        """As `Policy.for_model`, with the window that half of the budget is."""
        bound = super().for_model(shape)
        return replace(bound, window=max(bound.window, bound.budget // 2))
