"""Ragged storage of one layer: every (batch row, KV head) owns a stretch of one buffer, with slack to grow into."""

from __future__ import annotations

import torch

from sparsemm.cache import ops
from sparsemm.errors import CacheError

SLACK = 32  # rows a stretch may grow by before the layer is laid out again


class Slab:
    """Keys and values of one layer.

    Attributes:
        keys, values: (rows, D), the buffers; stretch i = b * Hkv + h starts at `starts[i]`.
        lengths: (B * Hkv,) int64 on the device, rows in use of each stretch.
        starts: (B * Hkv,) int64 on the device.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, keep: torch.Tensor, slack: int = SLACK) -> None:
        """Copy the selected positions of full keys and values, in order.

        Args:
            keys, values: (B, Hkv, S, D).
            keep: (B, Hkv, S) bool.
            slack: rows of room behind each stretch.

        Raises:
            CacheError: if the shapes do not fit.
        """
        if keys.shape != values.shape or keep.shape != keys.shape[:-1] or keep.dtype != torch.bool:
            raise CacheError(f"keys {keys.shape}, values {values.shape}, keep {keep.shape} do not fit")
        self.batch, self.num_kv_heads = keys.shape[:2]
        flat = keep.reshape(-1, keep.shape[-1])
        self.lengths = flat.sum(dim=-1)
        self._lay_out(keys.shape[-1], keys, slack)
        if keys.stride(-1) != 1 or values.stride(-1) != 1:
            keys, values = keys.contiguous(), values.contiguous()
        ops.compact(self.keys, self.values, keys, values, keep.contiguous(), self.starts)

    def _lay_out(self, dim: int, like: torch.Tensor, slack: int) -> None:
        capacity = self.lengths + slack
        ends = capacity.cumsum(0)
        self.starts = ends - capacity
        total = int(ends[-1]) if len(ends) else 0
        with torch.inference_mode(False):  # or nothing could be appended outside of the inference mode of a prefill
            self.keys, self.values = like.new_zeros(total, dim), like.new_zeros(total, dim)
        self.slack = slack  # known on the host, so that appending needs no device sync
        self.longest = int(self.lengths.max()) if len(self.lengths) else 0

    def append(self, keys: torch.Tensor, values: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Add rows (B, Hkv, T, D) to every stretch, in place; with `valid` (B, T) bool only the true ones."""
        new = keys.shape[2]
        if new > self.slack:
            self._grow(new)
        if valid is not None and valid.device.type == "cpu" and bool(valid.all()):  # elsewhere that waits
            valid = None
        if new == 1 and valid is None:
            ops.append_row(self.keys, self.values, keys, values, self.starts, self.lengths)
            self.lengths = self.lengths + 1
            self.slack -= 1
            self.longest += 1
            return
        offset = torch.arange(new, device=keys.device).expand(self.batch, new)
        count: torch.Tensor | int = new
        if valid is not None:
            # Padding is written behind the real rows, into slack that the next token overwrites: no device sync.
            real = valid.cumsum(-1)
            offset = torch.where(valid, real - 1, real[:, -1:] + (~valid).cumsum(-1) - 1)
            count = real[:, -1].repeat_interleave(self.num_kv_heads)
        offset = offset.repeat_interleave(self.num_kv_heads, dim=0)
        rows = (self.starts + self.lengths)[:, None] + offset
        self.keys[rows.flatten()] = keys.reshape(-1, keys.shape[-1])
        self.values[rows.flatten()] = values.reshape(-1, values.shape[-1])
        self.lengths = self.lengths + count
        self.slack -= new
        self.longest += new

    def _grow(self, new: int) -> None:
        keys, values, valid = self.padded()
        self._lay_out(keys.shape[-1], keys, max(SLACK, new))
        at = torch.arange(keys.shape[-2], device=keys.device)
        rows = (self.starts.view(self.batch, -1)[..., None] + at)[valid]
        self.keys[rows], self.values[rows] = keys[valid], values[valid]

    def padded(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys and values (B, Hkv, longest, D) and which rows of them are real (B, Hkv, longest) bool."""
        at = torch.arange(self.longest, device=self.keys.device)
        valid = at < self.lengths[:, None]
        rows = torch.where(valid, self.starts[:, None] + at, 0).view(self.batch, self.num_kv_heads, -1)
        valid = valid.view(self.batch, self.num_kv_heads, -1)
        return self.keys[rows], self.values[rows], valid

    def select_rows(self, index: torch.Tensor) -> None:
        """Keep the batch rows `index` (N,) int64, in that order; rows may repeat or drop out."""
        keys, values, valid = (tensor[index] for tensor in self.padded())
        self.batch = len(index)
        self.lengths = valid.sum(-1).flatten()
        self._lay_out(keys.shape[-1], keys, SLACK)
        at = torch.arange(keys.shape[-2], device=keys.device)
        rows = (self.starts.view(self.batch, -1)[..., None] + at)[valid]
        self.keys[rows], self.values[rows] = keys[valid], values[valid]

    def drop_newest(self, count: int) -> None:
        """Forget the newest `count` rows of every stretch; their room becomes slack again."""
        self.lengths = self.lengths - count
        self.slack += count
        self.longest -= count
