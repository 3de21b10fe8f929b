"""H2O: the newest tokens, and the ones that all rows together looked at most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsemm.policies.snapkv import SnapKV

CHUNK = 1 << 24  # logits held at once


@dataclass(frozen=True)
class H2O(SnapKV):
    """Uniform B: half newest tokens, half heavy hitters (arXiv 2306.14048).

    The score of position j is the sum of A[i, j] over every row i >= j of the prompt (padding rows left out), each
    row of equal weight, not pooled, mean over the query group; A = softmax(q k^T * scaling), causal, in fp32. The
    newest part is `window`, which `get_policy` sets to max(w, B // 2). In a later turn the rows are that turn's.
    """

    every_row: ClassVar[bool] = True

    def rate(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        valid: torch.Tensor,
        window: int,
        pooling_kernel: int,
        scaling: float,
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

    def watch(self, worth: torch.Tensor, weights: torch.Tensor, age: torch.Tensor, since: torch.Tensor) -> torch.Tensor:
        """The new token's attention is added to every row's sum."""
        return worth + weights
