"""H2O: the newest tokens, and the ones that all rows together looked at most."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from sparsemm.policies.policy import ModelShape
from sparsemm.policies.row_attention import grown, row_attention
from sparsemm.policies.selector import Prompt, Selector
from sparsemm.policies.snapkv import SnapKV


@dataclass(frozen=True)
class AccumulatedAttention(Selector):
    """The sum of A[i, j] over every row i >= j of the prompt (arXiv 2306.14048).

    Padding rows are left out, each row has equal weight; not pooled; mean over the query group;
    A = softmax(q k^T * scaling), causal, in fp32. In a later turn the rows are that turn's.
    """

    every_row: ClassVar[bool] = True
    summary: ClassVar[str] = "the positions that all rows of the prompt together attend to most"

    @property
    def accumulates(self) -> bool:
        """A sum over rows needs nothing but them."""
        return True

    def accumulate(self, total: torch.Tensor | None, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32, a chunk of rows at a time, so that no (S, S) tensor exists; O(S^2) time."""
        total = grown(total, prompt)
        for weights, end in row_attention(prompt):
            total[..., :end] += weights.sum(dim=-2).mean(dim=2)
        return total

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32."""
        total = self.accumulate(None, prompt) if prompt.accumulated is None else prompt.accumulated
        return total.masked_fill(~prompt.valid[:, None], float("-inf"))

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
