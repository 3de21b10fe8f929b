"""The C arguments that the CPU and the CUDA library take alike; each adds its own behind them."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from sparsemm.cache.library import DTYPES


def strides(tensor: torch.Tensor) -> ctypes.Array[ctypes.c_int64]:
    """Strides in bytes of all dimensions but the last."""
    size = tensor.element_size()
    return (ctypes.c_int64 * (tensor.dim() - 1))(*(size * s for s in tensor.stride()[:-1]))


def dense_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied if a row (..., D) is not in one piece."""
    return tensor.contiguous() if tensor.numel() and tensor.stride(-1) != 1 else tensor


def ragged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    output: torch.Tensor,
    scaling: float,
) -> tuple[Any, ...]:
    """Of `ops.ragged_decode`, which writes to `output` (B, Hq, D)."""
    stretches = starts.shape[0]
    return (
        DTYPES[query.dtype],
        query.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        starts.data_ptr(),
        lengths.data_ptr(),
        output.data_ptr(),
        stretches,
        query.shape[0] * query.shape[1] // max(stretches, 1),
        query.shape[2],
        keys.shape[0],
        scaling,
    )


def append(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> tuple[Any, ...]:
    """Of `ops.append`; the new rows may have any shape of as many numbers in that order."""
    return (
        keys.data_ptr(),
        values.data_ptr(),
        new_keys.data_ptr(),
        new_values.data_ptr(),
        starts.data_ptr(),
        lengths.data_ptr(),
        starts.shape[0],
        keys.shape[1] * keys.element_size(),
        keys.shape[0],
    )


def compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    full_keys: torch.Tensor,
    full_values: torch.Tensor,
    keep: torch.Tensor,
    starts: torch.Tensor,
) -> tuple[Any, ...]:
    """Of `ops.compact`."""
    return (
        keys.data_ptr(),
        values.data_ptr(),
        full_keys.data_ptr(),
        full_values.data_ptr(),
        keep.data_ptr(),
        starts.data_ptr(),
        *full_keys.shape[:3],
        keys.shape[1] * keys.element_size(),
        keys.shape[0],
        strides(full_keys),
        strides(full_values),
    )


def observe(
    query: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, output: torch.Tensor, pooling: int, scaling: float
) -> tuple[Any, ...]:
    """Of `ops.observe`, which writes to `output` (B, Hkv, S)."""
    batch, heads, length, dim = keys.shape
    return (
        DTYPES[query.dtype],
        query.data_ptr(),
        keys.data_ptr(),
        valid.data_ptr(),
        output.data_ptr(),
        batch,
        heads,
        query.shape[1] // heads,
        query.shape[2],
        length,
        dim,
        strides(query),
        strides(keys),
        pooling,
        scaling,
    )


def argmax_rows(
    query: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor, output: torch.Tensor
) -> tuple[Any, ...]:
    """Of `ops.argmax_rows`, which writes to `output` (Hq, T)."""
    heads, length, dim = keys.shape
    return (
        DTYPES[query.dtype],
        query.data_ptr(),
        keys.data_ptr(),
        begins.data_ptr(),
        ends.data_ptr(),
        output.data_ptr(),
        heads,
        query.shape[0] // heads,
        query.shape[1],
        length,
        dim,
        strides(query),
        strides(keys),
    )
