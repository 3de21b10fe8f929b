"""Blend: what the prompt's last rows attend to, and what any of its rows attended to, in equal parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsemm.policies.echo import Echo
from sparsemm.policies.mixkv import rescaled
from sparsemm.policies.peak import Peak
from sparsemm.policies.selector import Prompt
from sparsemm.policies.window_attention import UnpooledAttention


@dataclass(frozen=True)
class BlendEcho(UnpooledAttention):
    """O + m(echo): O of each position by itself, and the selector `echo` brought to O's mean, as in MixKV.

    O alone misses what the end of the prompt does not ask for; the maximum over all rows alone may prefer positions
    that only image rows attend to.

    Attributes:
        rows: number of rows, at equal distances; 0 means all.
    """

    rows: int = 0
    of: ClassVar[type[Peak]] = Echo
    every_row: ClassVar[bool] = True
    summary: ClassVar[str] = "positions that the window, or any row that looks at all of the prompt, attends to most"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.of(rows=self.rows)  # raises for impossible rows

    @property
    def accumulates(self) -> bool:
        """As the other selector says."""
        return self.of(rows=self.rows).accumulates

    def accumulate(self, total: torch.Tensor | None, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32, of the other selector."""
        return self.of(rows=self.rows).accumulate(total, prompt)

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32."""
        choice = prompt.candidates()
        observed = super().rate(prompt).masked_fill(~choice, 0.0)
        mixed = observed + rescaled(self.of(rows=self.rows).rate(prompt), observed, choice)
        return mixed.masked_fill(~choice, float("-inf"))


@dataclass(frozen=True)
class BlendPeak(BlendEcho):
    """O + m(peak): as `BlendEcho`, of rows that look only at what came before them."""

    of: ClassVar[type[Peak]] = Peak
    summary: ClassVar[str] = "positions that the window, or any row of the prompt before it, attends to most"
