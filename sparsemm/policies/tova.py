"""TOVA: the positions that the newest token attends to, one set for all heads of a layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from sparsemm.policies.row_attention import row_attention
from sparsemm.policies.selector import Prompt, Selector


@dataclass(frozen=True)
class LastRow(Selector):
    """The last row's attention, softmax in fp32, mean over all query heads of the layer (arXiv 2401.06104).

    Heads with the same number of slots keep the same positions. In a later turn and while answering heads hold
    different positions, and each is rated by its own query group.
    """

    summary: ClassVar[str] = "the positions that the last row attends to, the same ones in every head"

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32, the same for every head."""
        ((weights, _),) = row_attention(replace(prompt, query=prompt.query[:, :, -1:]))
        mean = weights.mean(dim=(1, 2, 3)).masked_fill(~prompt.valid, float("-inf"))
        return mean[:, None].expand(-1, prompt.key.shape[1], -1)

    def update(
        self, worth: torch.Tensor, weights: torch.Tensor, age: torch.Tensor, since: torch.Tensor, window: int
    ) -> torch.Tensor:
        """The newest token is the last row."""
        return weights
