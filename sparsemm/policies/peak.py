"""Peak: the largest attention that a position ever received from any row of the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch
from torch.nn import functional as F

from sparsemm.errors import BudgetError
from sparsemm.policies.row_attention import grown, row_attention
from sparsemm.policies.selector import Prompt, Selector


def spread(prompt: Prompt, number: int) -> torch.Tensor | None:
    """Returns positions of rows at equal distances, (B, number) int64, the newest among them; None means every row.

    Rows of padding are left out, so that a prompt has the same rows in a batch as alone.
    """
    rows = prompt.query.shape[2]
    if number >= rows:
        return None
    length = prompt.valid.shape[1]
    count = prompt.valid[:, length - rows :].sum(-1, keepdim=True)
    steps = torch.arange(1, number + 1, dtype=torch.int64, device=count.device)
    return length - count + (steps * count + number - 1) // number - 1


@dataclass(frozen=True)
class Peak(Selector):
    """The maximum of A[i, j] over all rows i >= j of the prompt and over the query group.

    A = softmax(q k^T * scaling), causal, in fp32. A position that one row attended to strongly stays, whether or not
    the last rows attend to it; in a mean over the same rows (`h2o`) it would be lost. In a later turn the rows are
    those of that turn, and every token of an answer adds to the maximum.

    Attributes:
        rows: number of rows, at equal distances; 0 means all, which costs O(S^2) time as the attention does.
        pool: odd width of an average pool over neighbouring positions before the window; 1 means none.
    """

    rows: int = 0
    pool: int = 1
    causal: ClassVar[bool] = True
    every_row: ClassVar[bool] = True
    by_group: ClassVar[str] = "max"
    summary: ClassVar[str] = "the positions that some row of the prompt once attended to most"

    def __post_init__(self) -> None:
        if not isinstance(self.rows, Integral) or self.rows < 0:
            raise BudgetError(f"rows is {self.rows!r}", hint="use a number of rows, or 0 for all of them")
        if not isinstance(self.pool, Integral) or self.pool < 1 or self.pool % 2 == 0:
            raise BudgetError(f"pool is {self.pool!r}", hint="use an odd number; 1 means no pooling")

    @property
    def accumulates(self) -> bool:
        """Rows at equal distances are known only at the end, and `echo` lets them look at what comes later."""
        return self.causal and self.rows == 0

    def accumulate(self, total: torch.Tensor | None, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32: a running maximum over chunks of rows, so that no (S, S) tensor exists."""
        most = grown(total, prompt)
        for weights, end in row_attention(prompt, spread(prompt, self.rows) if self.rows else None, self.causal):
            most[..., :end] = torch.maximum(most[..., :end], weights.amax(dim=(2, 3)))
        return most

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32."""
        most = self.accumulate(None, prompt) if prompt.accumulated is None else prompt.accumulated
        if self.pool > 1:
            most = F.avg_pool1d(most * prompt.candidates(), self.pool, stride=1, padding=self.pool // 2)
        return most.masked_fill(~prompt.valid[:, None], float("-inf"))

    def update(
        self, worth: torch.Tensor, weights: torch.Tensor, age: torch.Tensor, since: torch.Tensor, window: int
    ) -> torch.Tensor:
        """The new token is one more row."""
        return torch.maximum(worth, weights)
