"""A prompt that comes in chunks: held whole until its last token is there."""

from __future__ import annotations

import torch

from sparsemm.errors import CacheError


class Held:
    """Keys and values of the chunks so far, in buffers of the prompt's length, and the last queries.

    Args:
        key, query: the first chunk (B, Hkv, T, D) and (B, Hq, T, D), for shapes and dtype.
        length: tokens of the whole prompt.
        rows: query rows to remember.
    """

    def __init__(self, key: torch.Tensor, query: torch.Tensor, length: int, rows: int) -> None:
        batch, num_kv_heads, _, dim = key.shape
        with torch.inference_mode(False):  # the chunks may come in different modes
            self.keys = key.new_empty(batch, num_kv_heads, length, dim)
            self.values = torch.empty_like(self.keys)
        self.query = query[:, :, :0]
        self.rows, self.seen = rows, 0
        self.newest = 0  # tokens of the newest chunk

    def add(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Take a chunk; the last queries, and all keys and values so far.

        Raises:
            CacheError: if the batch is not the first chunk's.
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
        """Keep the batch rows `index` (N,) int64, in that order."""
        self.keys, self.values, self.query = self.keys[index], self.values[index], self.query[index]
