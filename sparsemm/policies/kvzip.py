"""KVzip: the positions that the model attends to while it reads the prompt's page again, over the full cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsemm.policies.selector import Prompt, Selector


@dataclass(frozen=True)
class KVzip(Selector):
    """The maximum of A[i, j] over the rows i of a replay and over the query group (arXiv 2505.23416).

    A replay comes after the prompt's prefill and before its compression: `sparsemm.cache.replay` makes one. It does not
    ask what the prompt's last rows attend to, so it suits questions that come later. KVzip lets the model repeat a
    text; an image cannot be repeated, so here the model writes down what it reads, and that transcript is the replay.
    The public code also has one threshold for all heads; here the policy says how many positions each head keeps.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"replay"})
    rates_turns: ClassVar[bool] = False
    by_group: ClassVar[str] = "max"
    summary: ClassVar[str] = "the positions that the model attended to most when it read the page a first time"

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32."""
        assert prompt.replay is not None
        return prompt.replay.masked_fill(~prompt.valid[:, None], float("-inf"))

    def update(
        self, worth: torch.Tensor, weights: torch.Tensor, age: torch.Tensor, since: torch.Tensor, window: int
    ) -> torch.Tensor:
        """The new token is one more row."""
        return torch.maximum(worth, weights)
