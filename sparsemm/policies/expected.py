"""Expected attention: what a query like those of the prompt would look at, from their mean and covariance."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch

from sparsemm.errors import BudgetError
from sparsemm.policies.selector import Prompt, Selector


@dataclass(frozen=True)
class ExpectedAttention(Selector):
    """softmax(mu k s + s^2 k' Sigma k / 2) |v|, mean over the query group (after arXiv 2510.00636).

    mu and Sigma are mean and covariance of the prompt's queries, rotated as they are, and s is the logits' factor. The
    paper un-rotates the queries and rotates their moments to the next 512 positions, which needs what the cache does
    not see. The first tokens are kept, and their rows do not count.

    Attributes:
        sinks: first tokens of a row.
    """

    sinks: int = 4
    every_row: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = frozenset({"value"})
    rates_answers: ClassVar[bool] = False
    summary: ClassVar[str] = "the positions that a query like those of the prompt is expected to attend to"

    def __post_init__(self) -> None:
        if not isinstance(self.sinks, Integral) or self.sinks < 0:
            raise BudgetError(f"sinks is {self.sinks!r}", hint="use a number of first tokens, from 0 up")

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32; O(S D^2) time."""
        assert prompt.value is not None
        number = prompt.valid.cumsum(-1)  # 1 for a row's first token
        first = prompt.valid & (number <= self.sinks)
        rows = prompt.query.shape[2]
        real = prompt.valid[:, prompt.valid.shape[1] - rows :]
        counted = real & ~first[:, first.shape[1] - rows :]
        counted = torch.where(counted.any(-1, keepdim=True), counted, real)[:, None, :, None]
        query = prompt.query.float().unflatten(1, (prompt.key.shape[1], -1))  # (B, Hkv, G, R, D)
        counted = counted[:, :, None]
        count = counted.sum(dim=3, keepdim=True)
        mean = (query * counted).sum(dim=3, keepdim=True) / count
        apart = (query - mean) * counted
        covariance = torch.matmul(apart.mT, apart) / count
        key = prompt.key.float()[:, :, None]
        logits = torch.matmul(key, mean.mT)[..., 0] * prompt.scaling
        logits = logits + 0.5 * prompt.scaling**2 * (torch.matmul(key, covariance) * key).sum(-1)
        weights = torch.softmax(logits.masked_fill(~prompt.valid[:, None, None], float("-inf")), dim=-1).mean(2)
        worth = weights * prompt.value.float().norm(dim=-1)
        worth = worth.masked_fill(first[:, None], torch.finfo(torch.float32).max)
        return worth.masked_fill(~prompt.valid[:, None], float("-inf"))
