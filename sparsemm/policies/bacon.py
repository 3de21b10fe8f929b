"""BACON: observation scores, corrected by what the last row alone looks at, in this layer and in those before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from sparsemm.ops.observe import observe
from sparsemm.policies.selector import Prompt
from sparsemm.policies.window_attention import WindowAttention

EARLIER = 4  # layers before this one that take part
TINY = 1e-8


def spread_of_best(values: torch.Tensor, among: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and standard deviation, (B, Hkv, 1) each, of the `number` largest values among some positions."""
    best = torch.sort(values.masked_fill(~among, float("-inf")), dim=-1, descending=True).values[..., :number]
    real = best.isfinite()
    count = real.sum(-1, keepdim=True).clamp(min=1)
    mean = best.masked_fill(~real, 0.0).sum(-1, keepdim=True) / count
    return mean, ((best - mean).masked_fill(~real, 0.0).square().sum(-1, keepdim=True) / count).sqrt()


@dataclass(frozen=True)
class Bacon(WindowAttention):
    """O + lambda V, where V = E + pool(E) + mean of E over up to four earlier layers, same KV head.

    E = relu(Q - O): Q is O of the last row alone, so E is what the end of the prompt asks for and the window's mean
    hides. lambda = 1/2 std(O) / std(V) clamp(mean V / mean O, 0, 1), over the 2 (B - w) best positions of each. In a
    later turn there are no earlier layers to look back on.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"scratch"})
    summary: ClassVar[str] = "the positions that the window or its last row attends to most"

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32; leaves E for the layers behind."""
        choice = prompt.candidates()
        observed = super().rate(prompt).masked_fill(~choice, 0.0)
        last = observe(prompt.query[:, :, -1:], prompt.key, prompt.valid, 1, prompt.scaling)
        last = self._pooled(last.masked_fill(~choice, 0.0)).masked_fill(~choice, 0.0)
        excess = (last - observed).clamp(min=0.0)
        earlier = [prompt.scratch[at].to(excess.device) for at in self._before(prompt) if at in prompt.scratch]
        prompt.scratch[prompt.layer] = excess
        prompt.scratch.pop(prompt.layer - EARLIER, None)
        asked = excess + self._pooled(excess)
        if earlier:
            asked = asked + torch.stack(earlier).mean(0)
        number = 2 * (prompt.budget - prompt.window)
        mean, spread = spread_of_best(observed, choice, number)
        mean_asked, spread_asked = spread_of_best(asked, choice, number)
        factor = 0.5 * spread / (spread_asked + TINY) * (mean_asked / (mean + TINY)).clamp(0.0, 1.0)
        return (observed + factor * asked).masked_fill(~choice, float("-inf"))

    @staticmethod
    def _before(prompt: Prompt) -> range:
        return range(max(prompt.layer - EARLIER, 0), prompt.layer)

    def _pooled(self, values: torch.Tensor) -> torch.Tensor:
        return F.avg_pool1d(values, self.pooling_kernel, stride=1, padding=self.pooling_kernel // 2)
