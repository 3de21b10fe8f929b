"""SnapKV's selector: the positions that the prompt's last rows attend to, pooled over neighbours."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral
from typing import ClassVar

import torch

from sparsemm.errors import BudgetError
from sparsemm.ops.observe import observe
from sparsemm.policies.selector import Prompt, Selector


@dataclass(frozen=True)
class WindowAttention(Selector):
    """Observation scores (arXiv 2404.14469).

    A = softmax(q k^T * scaling) of the last `window` rows, causal, in fp32; mean over the rows; over the positions
    before the window an average pool of `pooling_kernel` (zeros beyond the ends); mean over the query group. Positions
    inside the window are -inf too.

    Attributes:
        pooling_kernel: odd width of the pool.
    """

    pooling_kernel: int = 5
    summary: ClassVar[str] = "the positions that the window attends to most, with their neighbours"

    def __post_init__(self) -> None:
        width = self.pooling_kernel
        if not isinstance(width, Integral) or width < 1 or width % 2 == 0:
            raise BudgetError(f"pooling_kernel is {width!r}", hint="use an odd number")

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32."""
        rows = min(prompt.window, prompt.query.shape[2])
        newest = prompt.query[:, :, prompt.query.shape[2] - rows :]
        return observe(newest, prompt.key, prompt.valid, self.pooling_kernel, prompt.scaling)


@dataclass(frozen=True)
class UnpooledAttention(WindowAttention):
    """Observation scores of each position by itself, for tasks in which single tokens matter, as reading does."""

    pooling_kernel: int = field(default=1, init=False)
    summary: ClassVar[str] = "the positions that the window attends to most, each by itself"
