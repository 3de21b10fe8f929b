"""The append of the public head-wise codes, as a baseline: for one layer, and for a whole cache."""

from __future__ import annotations

from typing import Any

import torch

from sparsemm.cache import CompressedCache
from sparsemm.cache.layer import RaggedLayer
from sparsemm.cache.slab import Slab, rows_of


class CopyingAppend:
    """The append of the public head-wise codes, which copies everything into a new buffer for every token.

    The keys and values (rows, D) of all heads are stored one after the other without slack.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor) -> None:
        """Takes keys, values (rows, D) and lengths (heads,) int64, whose sum is the number of rows."""
        self.keys, self.values, self.lengths = keys, values, lengths
        count = torch.arange(len(lengths), dtype=torch.int64, device=lengths.device)
        ends = lengths.cumsum(0)
        # Computed beforehand, which flatters it: the public code computes them at every token.
        self.old = torch.arange(len(keys), dtype=torch.int64, device=keys.device) + count.repeat_interleave(lengths)
        self.new = ends + count

    def __call__(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns buffers with one new row (heads, D) each; they are not kept, so that every call costs the same."""
        return self._grown(self.keys, keys), self._grown(self.values, values)

    def _grown(self, rows: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        grown = rows.new_empty(len(rows) + len(new), rows.shape[1])
        grown[self.old] = rows
        grown[self.new] = new
        return grown


class CopyingLayer(RaggedLayer):
    """A layer that keeps the same rows as ours, and copies all of them for every new token."""

    def compress(self, *arguments: Any, **options: Any) -> None:
        """Compresses as `RaggedLayer` does; later tokens then use `append`, not the step that appends and attends."""
        super().compress(*arguments, **options)
        assert self.slab is not None
        self.slab.steps = False

    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None) -> Slab:
        """Appends keys and values (B, Hkv, 1, D) of one token of every row, none of which is padding."""
        slab = self.slab
        assert slab is not None and key.shape[2] == 1
        heads = torch.arange(len(slab.lengths), dtype=torch.int64, device=key.device)
        rows = rows_of(slab.starts, slab.lengths) if slab.slack else None  # the prompt's slab still has slack
        total = len(slab.keys) if rows is None else len(rows)
        ends = slab.lengths.cumsum(0)
        old = torch.arange(total, dtype=torch.int64, device=key.device) + heads.repeat_interleave(
            slab.lengths, output_size=total
        )
        for name, new in (("keys", key), ("values", value)):
            stored = getattr(slab, name)
            grown = stored.new_empty(total + len(heads), stored.shape[1])
            grown[old] = stored if rows is None else stored[rows]
            grown[ends + heads] = new.reshape(len(heads), -1)
            setattr(slab, name, grown)
        slab.starts = ends - slab.lengths + heads
        slab.lengths += 1
        slab.slack = 0
        slab.longest += 1
        return slab


def copying_cache(cache: CompressedCache) -> CompressedCache:
    """Returns an empty cache whose layers keep the same rows as those of `cache`, and append by copying everything."""
    layers: list[Any] = [CopyingLayer(layer.index, layer.policy) for layer in cache.ragged]
    return CompressedCache(layers, cache.config())
