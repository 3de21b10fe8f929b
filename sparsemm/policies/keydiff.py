"""KeyDiff: the keys that are least like the others of their head, without any query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsemm.policies.mixkv import mean_direction
from sparsemm.policies.selector import Prompt, Selector


@dataclass(frozen=True)
class KeyDiff(Selector):
    """-cos(k, mean of all k / |k|) (arXiv 2504.15364).

    The whole prompt is rated at once; the paper also evicts block by block.
    """

    rates_answers: ClassVar[bool] = False
    summary: ClassVar[str] = "the positions whose keys are least like the others"

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32."""
        unlike, _ = mean_direction(prompt)
        return unlike.masked_fill(~prompt.valid[:, None], float("-inf"))
