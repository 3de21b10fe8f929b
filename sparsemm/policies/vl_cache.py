"""VL-Cache: more slots for layers whose attention behind the image is spread over more positions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from sparsemm.policies.behind_image import BehindImage, attention_of_rows, rows_behind_image
from sparsemm.policies.layer_shares import LayerShares
from sparsemm.policies.policy import check_share
from sparsemm.policies.selector import Prompt, Selector


@dataclass(frozen=True, kw_only=True)
class VLCache(LayerShares):
    """Layers in proportion to 1 - gamma, the density of the rows behind the image (arXiv 2410.23317).

    gamma is the share of A[i, j], j <= i, i behind the image, over all heads, below `threshold` times the largest entry
    of its row. The paper clamps the share of a layer to [0.01, 1] of the prompt, which changes the total; here a layer
    has at least its window and at most the prompt, and the total is exact.

    Attributes:
        threshold: share of a row's largest entry below which an entry counts as zero.
    """

    selector: Selector = BehindImage()
    threshold: float = field(default=0.01, kw_only=True)
    summary: ClassVar[str] = "the same slots for the heads of a layer, more of them where attention is less sparse"

    def __post_init__(self) -> None:
        """As `Policy`; raises BudgetError for a threshold outside [0, 1] too."""
        super().__post_init__()
        check_share("threshold", self.threshold)

    def measure(self, prompt: Prompt) -> torch.Tensor:
        """1 - gamma of a layer: (B,) fp32."""
        dense, every = (torch.zeros(len(prompt.key), dtype=torch.float32, device=prompt.key.device) for _ in range(2))
        for weights, seen, _ in attention_of_rows(prompt, rows_behind_image(prompt)):
            large = weights >= self.threshold * weights.amax(-1, keepdim=True)
            dense += (large & seen[:, None, None]).sum(dim=(1, 2, 3, 4))
            every += prompt.query.shape[1] * seen.sum(dim=(1, 2))
        return dense / every.clamp(min=1)
