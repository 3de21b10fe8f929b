"""What the cache is measured against: the appends and the eviction that others have."""

from __future__ import annotations

import torch


class CopyingAppend:
    """The append of the public head-wise codes: a new buffer at every token, everything copied into it.

    Keys and values (rows, D) of all heads lie one behind the other without slack.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor) -> None:
        """keys, values (rows, D); lengths (heads,) int64 with as many rows in all."""
        self.keys, self.values, self.lengths = keys, values, lengths
        count = torch.arange(len(lengths), device=lengths.device)
        ends = lengths.cumsum(0)
        # Known beforehand, which flatters it: the public code works them out, or has a kernel do so.
        self.old = torch.arange(len(keys), device=keys.device) + count.repeat_interleave(lengths)
        self.new = ends + count

    def __call__(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One new row (heads, D) each; the buffers with it, which are dropped, so that every call costs the same."""
        return self._one(self.keys, keys), self._one(self.values, values)

    def _one(self, held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        grown = held.new_empty(len(held) + len(new), held.shape[1])
        grown[self.old] = held
        grown[self.new] = new
        return grown


class StaticAppend:
    """A row of a preallocated cache (B, Hkv, S, D) is overwritten."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values
        self.at = torch.tensor([keys.shape[2] - 1], device=keys.device)

    def __call__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keys and values (B, Hkv, 1, D)."""
        self.keys.index_copy_(2, self.at, keys)
        self.values.index_copy_(2, self.at, values)
