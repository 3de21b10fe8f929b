"""Elastic Cache: one set of anchors for all heads of a layer; what is evicted is averaged into the nearest anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsemm.policies.h2o import AccumulatedAttention
from sparsemm.policies.merging import merge, nearest_kept
from sparsemm.policies.selector import Prompt, Selector
from sparsemm.policies.snapkv import SnapKV


@dataclass(frozen=True)
class MergeNearest(AccumulatedAttention):
    """The sum of A[i, j] over every row, mean over all heads of the layer (Elastic Cache, arXiv 2407.18121).

    Positions that a head keeps outside the window are its anchors. Every evicted position belongs to the bucket of the
    nearest anchor, the earlier of two, and the key and the value of an anchor become the mean of its bucket, itself
    included. Keys are merged after their rotation, as in the public code. Where a head has no anchor nothing is merged.
    With `hold_budget` the token that leaves the window is evicted, the paper's fixed point at distance `window`, which
    is 25 in its code.

    The public code reads `argsort` as a rank, so what it keeps has nothing to do with its sums; it protects the first 4
    tokens and the last one, and its indices of merged positions lack the offset of those 4. Here the best sums are
    kept, as the paper says, and the window.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"value"})
    rates_turns: ClassVar[bool] = False
    summary: ClassVar[str] = "the positions that all heads attend to most; others are averaged into the nearest one"

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32, the same for every head."""
        worth = super().rate(prompt)
        return worth.mean(dim=1, keepdim=True).expand_as(worth)

    def merge(self, prompt: Prompt, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, Hkv, S, D) with the mean of each bucket in its anchor."""
        assert prompt.value is not None
        target = nearest_kept(keep & prompt.candidates())
        evicted = prompt.valid[:, None] & ~keep & (target >= 0)
        return merge(prompt.key, target, evicted, 0.0), merge(prompt.value, target, evicted, 0.0)

    def update(
        self, worth: torch.Tensor, weights: torch.Tensor, age: torch.Tensor, since: torch.Tensor, window: int
    ) -> torch.Tensor:
        """A row's age: of those outside the window the youngest is evicted."""
        return age.float()


@dataclass(frozen=True, kw_only=True)
class ElasticCache(SnapKV):
    """Uniform B, one set of positions for all heads of a layer, evicted positions averaged (arXiv 2407.18121)."""

    selector: Selector = MergeNearest()
    summary: ClassVar[str] = (
        "the same slots for every head, filled with what all heads attend to most; others go into the nearest one."
    )
