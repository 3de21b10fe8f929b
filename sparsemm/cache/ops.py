"""One dispatch for the cache's operations: the C++ library where it serves, its PyTorch twin everywhere else."""

from __future__ import annotations

import ctypes
import logging
import os
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional as F

from sparsemm.errors import CacheError

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # the library's numbers
FLOATS = (*DTYPES, torch.float64)
HEAD_DIMS = range(8, 257)
DONE, NO_MEMORY = -1, -2
P, N = ctypes.c_void_p, ctypes.c_int64
ARGUMENTS = {
    "sparsemm_ragged_decode": [ctypes.c_int, P, P, P, P, P, P, N, N, N, N, ctypes.c_float, ctypes.c_int],
    "sparsemm_append": [P, P, P, P, P, P, N, N, N],
    "sparsemm_compact": [P, P, P, P, P, P, N, N, N, N, N, P, P, ctypes.c_int],
}


@lru_cache
def library() -> ctypes.CDLL | None:
    """The compiled library, built when it is first needed; None without one, which one line of the log explains.

    SPARSEMM_KERNELS=off in the environment means None too.
    """
    if os.environ.get("SPARSEMM_KERNELS", "").lower() == "off":
        return None
    from sparsemm.cache.build import build  # here, or `python -m sparsemm.cache.build` would import itself twice

    try:
        loaded = ctypes.CDLL(str(build()))
        for name, arguments in ARGUMENTS.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, ctypes.c_int64
        return loaded
    except (CacheError, OSError, AttributeError) as error:
        logging.getLogger(__name__).warning("sparsemm: PyTorch serves the cache, not the C++ library: %s", error)
        return None


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the compiled library is there."""
    return library() is not None


def serves(*tensors: torch.Tensor) -> bool:
    """Whether the library computes with such keys, values and queries (..., D); the twin also has gradients."""
    gradients = torch.is_grad_enabled()
    for t in tensors:
        if t.dtype not in DTYPES or t.shape[-1] not in HEAD_DIMS or not t.is_cpu or (gradients and t.requires_grad):
            return False
    return available()


def ragged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """softmax(q k^T * scaling) v of one query token per (batch row, query head) over its head's own rows.

    Args:
        query: (B, Hq, D) fp32, fp16, bf16 or fp64, contiguous; query head h reads KV head h // (Hq / Hkv).
        keys, values: (rows, D), contiguous, of the query's dtype.
        starts, lengths: (B * Hkv,) int64, contiguous; head i owns rows starts[i] ... starts[i] + lengths[i] - 1.
        scaling: factor of the logits.

    Returns:
        (B, Hq, D); accumulated in fp32 or better; zeros for a head without rows.

    Raises:
        CacheError: if dtypes, shapes, strides or devices do not fit, or (on the CPU) a stretch leaves the slab.
    """
    if torch.is_grad_enabled() and (query.requires_grad or keys.requires_grad or values.requires_grad):
        _check_decode(query, keys, values, starts, lengths)
        return ragged_decode_twin(query, keys, values, starts, lengths, scaling)
    return _OPS["ragged_decode"](query, keys, values, starts, lengths, scaling)


def append(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """Write one new row of K and V behind every stretch, in place; the caller adds 1 to its lengths.

    Args:
        keys, values: (rows, D), contiguous; changed.
        new_keys, new_values: (B * Hkv, D), contiguous, of the same dtype.
        starts, lengths: (B * Hkv,) int64, contiguous; starts ascend and a stretch may grow up to the next one.

    Raises:
        CacheError: if dtypes, shapes, strides or devices do not fit, or (on the CPU) a stretch has no room; then
            nothing was written.
    """
    if torch.is_grad_enabled() and (new_keys.requires_grad or new_values.requires_grad):
        _check_append(keys, values, new_keys, new_values, starts, lengths)
        return append_twin(keys, values, new_keys, new_values, starts, lengths)
    return _OPS["append"](keys, values, new_keys, new_values, starts, lengths)


def compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    full_keys: torch.Tensor,
    full_values: torch.Tensor,
    keep: torch.Tensor,
    starts: torch.Tensor,
) -> None:
    """Copy the selected positions of full K and V to the slab, in order and in place.

    Args:
        keys, values: (rows, D), contiguous; changed.
        full_keys, full_values: (B, Hkv, S, D) of the same dtype; any strides whose last is 1.
        keep: (B, Hkv, S) bool, contiguous.
        starts: (B * Hkv,) int64, contiguous and ascending; a stretch ends where the next one starts.

    Raises:
        CacheError: if dtypes, shapes, strides or devices do not fit, or (on the CPU) a stretch has too little room;
            then nothing was written.
    """
    if torch.is_grad_enabled() and (full_keys.requires_grad or full_values.requires_grad):
        _check_compact(keys, values, full_keys, full_values, keep, starts)
        return compact_twin(keys, values, full_keys, full_values, keep, starts)
    return _OPS["compact"](keys, values, full_keys, full_values, keep, starts)


# The twins: plain PyTorch for any device and dtype, differentiable, and what the library is tested against.


def ragged_decode_twin(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """`ragged_decode` by padding every head to the longest."""
    longest = int(lengths.max()) if len(lengths) else 0
    if longest == 0:
        return torch.zeros_like(query)
    at = torch.arange(longest, device=keys.device)
    valid = at < lengths[:, None]
    rows = torch.where(valid, starts[:, None] + at, starts[:, None].clamp(max=len(keys) - 1))
    group = query.reshape(len(starts), -1, query.shape[-1])
    output = F.scaled_dot_product_attention(group, keys[rows], values[rows], attn_mask=valid[:, None], scale=scaling)
    return output.masked_fill(lengths[:, None, None] == 0, 0.0).view(query.shape)


def append_twin(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """`append` by indexing."""
    keys[starts + lengths] = new_keys
    values[starts + lengths] = new_values


def compact_twin(
    keys: torch.Tensor,
    values: torch.Tensor,
    full_keys: torch.Tensor,
    full_values: torch.Tensor,
    keep: torch.Tensor,
    starts: torch.Tensor,
) -> None:
    """`compact` by indexing."""
    flat = keep.flatten(0, 1)
    # Rank of a kept position within its stretch, then its row in the buffer.
    stretch, position = flat.nonzero(as_tuple=True)
    rows = starts[stretch] + (flat.cumsum(dim=-1) - 1)[stretch, position]
    keys[rows] = full_keys[keep]
    values[rows] = full_values[keep]


# Checks, the same whoever computes.


# Written out without loops: they run at every step of every layer, with the processor's caches full of weights.


def _check_slab(op: str, keys: torch.Tensor, values: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> None:
    shape, dtype, device = keys.shape, keys.dtype, keys.device
    if len(shape) != 2 or values.shape != shape:
        raise CacheError(f"keys {tuple(shape)} and values {tuple(values.shape)} are not (rows, D) both", where=op)
    if dtype not in FLOATS or values.dtype != dtype or one.dtype != dtype or two.dtype != dtype:
        dtypes = sorted({str(t.dtype) for t in (keys, values, one, two)})
        raise CacheError(f"dtypes {dtypes} are not one of fp32, fp16, bf16 and fp64", where=op)
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise CacheError("keys and values are not contiguous", where=op)
    if values.device != device or one.device != device or two.device != device:
        raise CacheError("tensors lie on different devices", where=op)
    if one.shape[-1:] != shape[1:] or two.shape[-1:] != shape[1:]:
        shapes = [tuple(t.shape) for t in (one, two)]
        raise CacheError(f"shapes {shapes} do not end with head dimension {shape[1]}", where=op)


def _check_stretches(op: str, keys: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> None:
    shape = starts.shape
    if starts.dtype != torch.int64 or lengths.dtype != torch.int64 or len(shape) != 1 or lengths.shape != shape:
        shapes = [(tuple(t.shape), t.dtype) for t in (starts, lengths)]
        raise CacheError(f"starts and lengths are {shapes}, not (B * Hkv,) int64", where=op)
    if not (starts.is_contiguous() and lengths.is_contiguous()):
        raise CacheError("starts or lengths are not contiguous", where=op)
    if starts.device != keys.device or lengths.device != keys.device:
        raise CacheError("starts or lengths are not on the device of the keys", where=op)


def _check_decode(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor
) -> None:
    op = "ragged_decode"
    _check_slab(op, keys, values, query, query)
    _check_stretches(op, keys, starts, lengths)
    if query.dim() != 3 or not query.is_contiguous():
        raise CacheError(f"query {tuple(query.shape)} is not (B, Hq, D) and contiguous", where=op)
    batch, heads = query.shape[:2]
    stretches = len(starts)
    if (batch * heads == 0) != (stretches == 0) or (stretches and (stretches % batch or batch * heads % stretches)):
        what = f"{stretches} stretches do not serve a query of {batch} rows and {heads} heads"
        raise CacheError(what, where=op, hint="there is one for each batch row and KV head")


def _check_append(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    op = "append"
    _check_slab(op, keys, values, new_keys, new_values)
    _check_stretches(op, keys, starts, lengths)
    want, shapes = (len(starts), keys.shape[1]), (new_keys.shape, new_values.shape)
    if shapes != (want, want) or not (new_keys.is_contiguous() and new_values.is_contiguous()):
        raise CacheError(f"new rows {[tuple(s) for s in shapes]} are not {want} and contiguous", where=op)


def _check_compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    full_keys: torch.Tensor,
    full_values: torch.Tensor,
    keep: torch.Tensor,
    starts: torch.Tensor,
) -> None:
    op = "compact"
    _check_slab(op, keys, values, full_keys, full_values)
    _check_stretches(op, keys, starts, starts)
    shape = tuple(full_keys.shape)
    if full_keys.dim() != 4 or full_values.shape != full_keys.shape or keep.shape != full_keys.shape[:-1]:
        what = f"full keys {shape}, values {tuple(full_values.shape)} and keep {tuple(keep.shape)} do not fit"
        raise CacheError(what, where=op)
    if len(starts) != shape[0] * shape[1]:
        raise CacheError(f"{len(starts)} stretches for {shape[0]} rows of {shape[1]} KV heads", where=op)
    if keep.dtype != torch.bool or not keep.is_contiguous() or keep.device != keys.device:
        raise CacheError("keep is not bool and contiguous on the device of the keys", where=op)
    if any(t.numel() and t.stride(-1) != 1 for t in (full_keys, full_values)):
        raise CacheError("the last dimension of the full keys and values is not contiguous", where=op)


def _first(bad: torch.Tensor) -> int:
    return int(bad.nonzero()[0]) if bool(bad.any()) else DONE


def _ends(starts: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([starts[1:], starts.new_full((min(len(starts), 1),), rows)])


def _outcome(op: str, code: int, what: str) -> None:
    if code == NO_MEMORY:
        raise MemoryError(f"{op}: no memory for partial results")
    if code != DONE:
        raise CacheError(what, where=f"{op}, stretch {code}")


# What torch.library calls, on every device: checks, then the library or the twin.


def _ragged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    _check_decode(query, keys, values, starts, lengths)
    rows, stretches = len(keys), len(starts)
    loaded = library() if serves(query, keys, values) else None
    if loaded is not None:
        output = torch.empty_like(query)
        code = loaded.sparsemm_ragged_decode(
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
            rows,
            scaling,
            torch.get_num_threads(),
        )
    else:
        # Reading starts on a CUDA device would wait for it.
        bad = (starts < 0) | (lengths < 0) | (lengths > rows) | (starts > rows - lengths)
        code = DONE if keys.is_cuda else _first(bad)
    _outcome("ragged_decode", code, f"its start or length leaves a slab of {rows} rows")
    if loaded is None:
        output = ragged_decode_twin(query, keys, values, starts, lengths, scaling)
    return output


def _append(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    _check_append(keys, values, new_keys, new_values, starts, lengths)
    rows = len(keys)
    loaded = library() if serves(keys, values) else None
    if loaded is not None:
        code = loaded.sparsemm_append(
            keys.data_ptr(),
            values.data_ptr(),
            new_keys.data_ptr(),
            new_values.data_ptr(),
            starts.data_ptr(),
            lengths.data_ptr(),
            len(starts),
            keys.shape[1] * keys.element_size(),
            rows,
        )
    else:
        ends = _ends(starts, rows)
        bad = (starts < 0) | (lengths < 0) | (ends > rows) | (lengths >= ends - starts)
        code = DONE if keys.is_cuda else _first(bad)
    _outcome("append", code, f"it has no room for another row before the next stretch, in a slab of {rows} rows")
    if loaded is None:
        append_twin(keys, values, new_keys, new_values, starts, lengths)


def _compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    full_keys: torch.Tensor,
    full_values: torch.Tensor,
    keep: torch.Tensor,
    starts: torch.Tensor,
) -> None:
    _check_compact(keys, values, full_keys, full_values, keep, starts)
    rows, size = len(keys), keys.element_size()
    loaded = library() if serves(keys, values) else None
    if loaded is not None:
        strides = [(ctypes.c_int64 * 3)(*(size * s for s in t.stride()[:3])) for t in (full_keys, full_values)]
        code = loaded.sparsemm_compact(
            keys.data_ptr(),
            values.data_ptr(),
            full_keys.data_ptr(),
            full_values.data_ptr(),
            keep.data_ptr(),
            starts.data_ptr(),
            *full_keys.shape[:3],
            keys.shape[1] * size,
            rows,
            *strides,
            torch.get_num_threads(),
        )
    else:
        ends = _ends(starts, rows)
        bad = (starts < 0) | (ends > rows) | (starts > ends) | (keep.flatten(0, 1).sum(-1) > ends - starts)
        code = DONE if keys.is_cuda else _first(bad)
    _outcome("compact", code, f"what it keeps does not fit before the next stretch, in a slab of {rows} rows")
    if loaded is None:
        compact_twin(keys, values, full_keys, full_values, keep, starts)


def _ragged_decode_fake(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    _check_decode(query, keys, values, starts, lengths)
    return torch.empty_like(query)


_SLAB = "Tensor(a!) keys, Tensor(b!) values, "
_STRETCHES = "Tensor starts, Tensor lengths"
_LIBRARY = torch.library.Library("sparsemm", "FRAGMENT")
_OPS: dict[str, Any] = {}  # found once: torch.ops looks a name up at every call
for _schema, _function, _fake in (
    (
        f"ragged_decode(Tensor query, Tensor keys, Tensor values, {_STRETCHES}, float scaling) -> Tensor",
        _ragged_decode,
        _ragged_decode_fake,
    ),
    (
        f"append({_SLAB}Tensor new_keys, Tensor new_values, {_STRETCHES}) -> ()",
        _append,
        _check_append,
    ),
    (
        f"compact({_SLAB}Tensor full_keys, Tensor full_values, Tensor keep, Tensor starts) -> ()",
        _compact,
        _check_compact,
    ),
):
    _name = _LIBRARY.define(_schema)
    for _device in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _function, _device)
    torch.library.register_fake(f"sparsemm::{_name}", _fake, lib=_LIBRARY)
    _OPS[_name] = getattr(torch.ops.sparsemm, _name).default
