"""SnapKV's selector: what the prompt's last rows look at, pooled over neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch

from sparsemm.errors import BudgetError
from sparsemm.ops.observe import observe
from sparsemm.policies.selector import Selector


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

    def __post_init__(self) -> None:
        width = self.pooling_kernel
        if not isinstance(width, Integral) or width < 1 or width % 2 == 0:
            raise BudgetError(f"pooling_kernel is {width!r}", hint="use an odd number")

    def rate(
        self, query: torch.Tensor, key: torch.Tensor, valid: torch.Tensor, window: int, scaling: float
    ) -> torch.Tensor:
        """(B, Hkv, S) fp32."""
        rows = min(window, query.shape[2])
        return observe(query[:, :, query.shape[2] - rows :], key, valid, self.pooling_kernel, scaling)
