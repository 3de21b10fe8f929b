"""Ragged storage in 8 bits: one scale per row, dequantised layer by layer when it is read."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from sparsemm.cache.slab import Slab, pieces, rows_of

# Name -> storage dtype, and the largest number it stores.
STORAGES = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}


def quantize(rows: torch.Tensor, storage: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rows (N, D) as 8-bit numbers (N, D) and scales (N,) fp32: row = numbers * scale.

    The scale is max |row| / largest number, 0 for a row of zeros. Rows must be finite.
    """
    dtype, largest = STORAGES[storage]
    exact = rows.float()
    scales = exact.abs().amax(dim=-1) / largest
    scaled = exact / torch.where(scales > 0, scales, 1.0)[..., None]
    if dtype == torch.int8:
        scaled = scaled.round()
    return scaled.clamp(-largest, largest).to(dtype), scales


class QuantizedSlab(Slab):
    """Keys and values of one layer in "int8" or "fp8" (e4m3), with an fp32 scale per key or value: D + 4 bytes each."""

    BUFFERS: ClassVar[tuple[str, ...]] = ("keys", "values", "key_scales", "value_scales")

    def __init__(self, keys: torch.Tensor, *args: Any, storage: str, **kwargs: Any) -> None:
        """Takes the arguments of `Slab`, and `storage`, one of `STORAGES`."""
        self.storage = storage
        super().__init__(keys, *args, **kwargs)

    def _allocate(self, rows: int, like: torch.Tensor) -> None:
        dtype = STORAGES[self.storage][0]
        self.keys, self.values = (like.new_zeros(rows, like.shape[-1], dtype=dtype) for _ in range(2))
        self.key_scales, self.value_scales = (like.new_zeros(rows, dtype=torch.float32) for _ in range(2))

    def _fill(self, keys: torch.Tensor, values: torch.Tensor, keep: torch.Tensor) -> None:
        self._write(rows_of(self.starts, self.lengths), keys[keep], values[keep])

    def _write(self, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        for new, buffer, scales in ((keys, self.keys, self.key_scales), (values, self.values, self.value_scales)):
            buffer[rows], scales[rows] = quantize(new.detach(), self.storage)

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns copies of all keys and values, (rows, D) in the model's dtype, slack included."""
        rows, dim = self.keys.shape
        keys, values = (buffer.new_empty(rows, dim, dtype=self.dtype) for buffer in (self.keys, self.values))
        for part in pieces(rows, dim):
            keys[part] = self.read_keys(part)
            values[part] = self.read_values(part)
        return keys, values

    def read_keys(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Returns the keys (..., D) of row numbers (...), in the model's dtype."""
        return self.keys[rows].float().mul_(self.key_scales[rows][..., None]).to(self.dtype)

    def read_values(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Returns the values (..., D) of row numbers (...), in the model's dtype."""
        return self.values[rows].float().mul_(self.value_scales[rows][..., None]).to(self.dtype)
