"""Buffers a prompt that arrives in chunks until it is complete and can be compressed."""

from __future__ import annotations

import torch

from sparsemm.errors import CacheError


class ChunkBuffer:
    """Keys and values of the chunks so far, in buffers of the prompt's length, and the newest queries.

    Args:
        key, query: the first chunk (B, Hkv, T, D) and (B, Hq, T, D), for shapes and dtype.
        length: tokens of the whole prompt.
        rows: newest query rows to keep.
    """

    def __init__(self, key: torch.Tensor, query: torch.Tensor, length: int, rows: int) -> None:
        batch, num_kv_heads, _, dim = key.shape
        with torch.inference_mode(False):  # chunks may arrive inside and outside of inference mode
            self.keys = key.new_empty(batch, num_kv_heads, length, dim)
            self.values = torch.empty_like(self.keys)
        self.query = query[:, :, :0]
        self.rows, self.seen = rows, 0
        self.newest = 0  # tokens of the newest chunk
        self.accumulated: torch.Tensor | None = None  # (B, Hkv, seen) fp32, as from `Selector.accumulate`

    def add(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Adds a chunk, and returns the newest queries and all keys and values so far.

        Raises:
            CacheError: if the batch size differs from that of the first chunk.
        """
        if len(key) != len(self.keys):
            raise CacheError(f"batch of {len(key)} rows after a chunk of {len(self.keys)}")
        self.newest = key.shape[2]
        end = self.seen + self.newest
        self.keys[:, :, self.seen : end], self.values[:, :, self.seen : end] = key, value
        self.seen = end
        self.query = torch.cat([self.query, query], dim=2)[:, :, -self.rows :]
        return self.query, self.keys[:, :, :end], self.values[:, :, :end]

    def select_rows(self, index: torch.Tensor) -> None:
        """Keeps the batch rows `index` (N,) int64, in that order."""
        self.keys, self.values, self.query = self.keys[index], self.values[index], self.query[index]
        self.accumulated = None if self.accumulated is None else self.accumulated[index]
