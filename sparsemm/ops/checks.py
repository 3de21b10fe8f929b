"""Argument validation shared by all operations and backends; every error is a CacheError that names the operation.

Checks that run in a decode step have no loops: they run in every layer, with the CPU's caches full of weights.
"""

from __future__ import annotations

import torch

from sparsemm.errors import CacheError
from sparsemm.ops.library import FLOATS


def check_slab(op: str, keys: torch.Tensor, values: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> None:
    """Checks that keys and values (rows, D) are one slab, and that `first` and `second` (..., D) match it."""
    shape, dtype, device = keys.shape, keys.dtype, keys.device
    if len(shape) != 2 or values.shape != shape:
        raise CacheError(f"keys {tuple(shape)} and values {tuple(values.shape)} are not (rows, D) both", where=op)
    if dtype not in FLOATS or values.dtype != dtype or first.dtype != dtype or second.dtype != dtype:
        dtypes = sorted({str(t.dtype) for t in (keys, values, first, second)})
        raise CacheError(f"dtypes {dtypes} are not one of fp32, fp16, bf16 and fp64", where=op)
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise CacheError("keys and values are not contiguous", where=op)
    if values.device != device or first.device != device or second.device != device:
        raise CacheError("tensors lie on different devices", where=op)
    if first.shape[-1:] != shape[1:] or second.shape[-1:] != shape[1:]:
        shapes = [tuple(t.shape) for t in (first, second)]
        raise CacheError(f"shapes {shapes} do not end with head dimension {shape[1]}", where=op)


def check_segments(op: str, keys: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> None:
    """Checks that starts and lengths are (B * Hkv,) int64 on the device of the keys."""
    shape = starts.shape
    if starts.dtype != torch.int64 or lengths.dtype != torch.int64 or len(shape) != 1 or lengths.shape != shape:
        shapes = [(tuple(t.shape), t.dtype) for t in (starts, lengths)]
        raise CacheError(f"starts and lengths are {shapes}, not (B * Hkv,) int64", where=op)
    if not (starts.is_contiguous() and lengths.is_contiguous()):
        raise CacheError("starts or lengths are not contiguous", where=op)
    if starts.device != keys.device or lengths.device != keys.device:
        raise CacheError("starts or lengths are not on the device of the keys", where=op)


def check_heads(op: str, query: torch.Tensor, keys: torch.Tensor) -> None:
    """Checks that query and keys (..., heads, rows, D) match."""
    if keys.dtype not in FLOATS or query.dtype != keys.dtype:
        dtypes = sorted({str(query.dtype), str(keys.dtype)})
        raise CacheError(f"dtypes {dtypes} are not one of fp32, fp16, bf16 and fp64", where=op)
    if query.device != keys.device:
        raise CacheError("tensors lie on different devices", where=op)
    shapes = [tuple(t.shape) for t in (query, keys)]
    if query.dim() < 3 or keys.dim() < 3 or query.shape[-1] != keys.shape[-1]:
        raise CacheError(f"shapes {shapes} do not end with (heads, rows, D)", where=op)
    if keys.shape[-3] == 0 or query.shape[-3] % keys.shape[-3]:
        raise CacheError(f"{query.shape[-3]} query heads for {keys.shape[-3]} KV heads", where=op)


def check_bounds(
    op: str, names: str, first: torch.Tensor, second: torch.Tensor, count: int, device: torch.device
) -> None:
    """Checks that two vectors are (count,) int64 on a device."""
    if any(t.shape != (count,) or t.dtype != torch.int64 for t in (first, second)):
        shapes = [(tuple(t.shape), t.dtype) for t in (first, second)]
        raise CacheError(f"{names} are {shapes}, not ({count},) int64", where=op)
    if first.device != device or second.device != device:
        raise CacheError(f"{names} are not on the device of the keys", where=op)


def segment_ends(starts: torch.Tensor, rows: int) -> torch.Tensor:
    """Returns the end of each segment's room, (N,) int64, in a slab of `rows` rows: the start of the next segment."""
    return torch.cat([starts[1:], starts.new_full((min(len(starts), 1),), rows)])


def first_true(bad: torch.Tensor) -> int | None:
    """Returns the index of the first true entry (N,), or None; this waits for the device."""
    return int(bad.nonzero()[0]) if bool(bad.any()) else None
