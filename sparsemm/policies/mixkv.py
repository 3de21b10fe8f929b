"""MixKV: importance where a head's keys differ, diversity where they are all alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from sparsemm.policies.selector import Prompt
from sparsemm.policies.window_attention import WindowAttention

TINY = 1e-12


def mean_direction(prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns how similar the keys of each head are to each other.

    Returns:
        -cos of every key and the mean of all directions, (B, Hkv, S) fp32; and the mean cosine of two different keys
        of a head, (B, Hkv, 1) fp32. The window's keys count, padding does not.
    """
    direction = F.normalize(prompt.key.float(), dim=-1) * prompt.valid[:, None, :, None]
    count = prompt.valid.sum(-1)[:, None, None].float()
    mean = direction.sum(dim=2, keepdim=True) / count[..., None]
    alike = (count * mean.square().sum(-1) - 1) / (count - 1).clamp(min=1)
    return -(direction * F.normalize(mean, dim=-1)).sum(-1), alike


def rescaled(values: torch.Tensor, like: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Scales values to [0, 1] by minimum and maximum, then to the mean of `like`; all of these over `among` alone.

    The result is zero elsewhere, and zero everywhere if all values are equal.
    """
    low = values.masked_fill(~among, float("inf")).amin(-1, keepdim=True)
    high = values.masked_fill(~among, float("-inf")).amax(-1, keepdim=True)
    share = ((values - low) / (high - low).clamp(min=TINY)).masked_fill(~among, 0.0)
    return share * (like.masked_fill(~among, 0.0).sum(-1, keepdim=True) / share.sum(-1, keepdim=True).clamp(min=TINY))


@dataclass(frozen=True)
class MixKV(WindowAttention):
    """(1 - r) (O + m(|v|)) + r m(-cos), per prompt and KV head.

    O is the observation score, cos that of a key and the mean direction of all keys, and m brings a quantity to O's
    mean by its minimum and maximum over the positions among which there is a choice. r is the mean cosine of two
    different keys, at least 0, measured on the prompt itself; the public code has it as a table of one model.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"value"})
    summary: ClassVar[str] = "positions that are attended to, have large values, or keys unlike the others"

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32."""
        assert prompt.value is not None
        choice = prompt.candidates()
        observed = super().rate(prompt).masked_fill(~choice, 0.0)
        unlike, alike = mean_direction(prompt)
        alike = alike.clamp(0.0, 1.0)
        size = prompt.value.float().norm(dim=-1)
        importance = observed + rescaled(size, observed, choice)
        mixed = (1 - alike) * importance + alike * rescaled(unlike, observed, choice)
        return mixed.masked_fill(~choice, float("-inf"))
