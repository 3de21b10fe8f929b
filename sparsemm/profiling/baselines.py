"""What the cache is measured against: the append of the public head-wise codes, of one layer and of a whole cache."""

from __future__ import annotations

from typing import Any

import torch

from sparsemm.cache import CompressedCache
from sparsemm.cache.layer import RaggedLayer
from sparsemm.cache.slab import Slab, rows_of


class CopyingAppend:
    """The append of the public head-wise codes: a new buffer at every token, everything copied into it.

    Keys and values (rows, D) of all heads lie one behind the other without slack.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor) -> None:
        """keys, values (rows, D); lengths (heads,) int64 with as many rows in all."""
        self.keys, self.values, self.lengths = keys, values, lengths
        count = torch.arange(len(lengths), dtype=torch.int64, device=lengths.device)
        ends = lengths.cumsum(0)
        # Known beforehand, which flatters it: the public code works them out, or has a kernel do so.
        self.old = torch.arange(len(keys), dtype=torch.int64, device=keys.device) + count.repeat_interleave(lengths)
        self.new = ends + count

    def __call__(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One new row (heads, D) each; the buffers with it, which are dropped, so that every call costs the same."""
        return self._one(self.keys, keys), self._one(self.values, values)

    def _one(self, held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        grown = held.new_empty(len(held) + len(new), held.shape[1])
        grown[self.old] = held
        grown[self.new] = new
        return grown


class CopyingLayer(RaggedLayer):
    """A layer that keeps and attends to the same rows as ours, and copies all of them for every new token."""

    def compress(self, *arguments: Any, **options: Any) -> None:
        """As in `RaggedLayer`; what follows goes through `append`, not through the step that appends and attends."""
        super().compress(*arguments, **options)
        assert self.slab is not None
        self.slab.steps = False

    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None) -> Slab:
        """Keys and values (B, Hkv, 1, D) of one token of every row, no padding among them."""
        slab = self.slab
        assert slab is not None and key.shape[2] == 1
        heads = torch.arange(len(slab.lengths), dtype=torch.int64, device=key.device)
        rows = rows_of(slab.starts, slab.lengths) if slab.slack else None  # the prompt's slab is not tight yet
        total = len(slab.keys) if rows is None else len(rows)
        ends = slab.lengths.cumsum(0)
        old = torch.arange(total, dtype=torch.int64, device=key.device) + heads.repeat_interleave(
            slab.lengths, output_size=total
        )
        for name, new in (("keys", key), ("values", value)):
            held = getattr(slab, name)
            grown = held.new_empty(total + len(heads), held.shape[1])
            grown[old] = held if rows is None else held[rows]
            grown[ends + heads] = new.reshape(len(heads), -1)
            setattr(slab, name, grown)
        slab.starts = ends - slab.lengths + heads
        slab.lengths += 1
        slab.slack = 0
        slab.longest += 1
        return slab


def copying_cache(cache: CompressedCache) -> CompressedCache:
    """A fresh cache whose layers choose like those of `cache`, and append by copying everything."""
    layers: list[Any] = [CopyingLayer(layer.index, layer.policy) for layer in cache.ragged]
    return CompressedCache(layers, cache.config())
