"""Computes the attention of one new token, each head over its own rows of a slab."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.nn import functional as F

from sparsemm.errors import CacheError
from sparsemm.ops import decode_backends, fastest, library
from sparsemm.ops.checks import check_segments, check_slab, first_true
from sparsemm.ops.library import DONE, DTYPES, aligned, call_cpu, call_cuda, checked, serves, wants_gradient
from sparsemm.ops.register import register


def ragged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Computes softmax(q k^T * scaling) v of one query token per (batch row, query head), over its head's own rows.

    Args:
        query: (B, Hq, D) fp32, fp16, bf16 or fp64, contiguous; query head h reads KV head h // (Hq / Hkv).
        keys, values: (rows, D), contiguous, of the query's dtype.
        starts, lengths: (B * Hkv,) int64, contiguous; segment i has rows starts[i] ... starts[i] + lengths[i] - 1.
        scaling: factor of the logits.

    Returns:
        (B, Hq, D); accumulated in fp32 or better; zeros for a head without rows.

    Raises:
        CacheError: if dtypes, shapes, strides or devices are wrong, or (on the CPU) a segment leaves the slab.
    """
    if wants_gradient(query, keys, values):
        check(query, keys, values, starts, lengths, scaling)
        return reference(query, keys, values, starts, lengths, scaling)
    return _OP(query, keys, values, starts, lengths, scaling)


def reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Computes `ragged_decode` with every head padded to the longest."""
    longest = int(lengths.max()) if len(lengths) else 0
    if longest == 0:
        return torch.zeros_like(query)
    at = torch.arange(longest, dtype=torch.int64, device=keys.device)
    valid = at < lengths[:, None]
    rows = torch.where(valid, starts[:, None] + at, starts[:, None].clamp(max=len(keys) - 1))
    group = query.reshape(len(starts), -1, query.shape[-1])
    output = F.scaled_dot_product_attention(group, keys[rows], values[rows], attn_mask=valid[:, None], scale=scaling)
    return output.masked_fill(lengths[:, None, None] == 0, 0.0).view(query.shape)


def check(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> None:
    """Raises CacheError for wrong arguments."""
    op = "ragged_decode"
    check_slab(op, keys, values, query, query)
    check_segments(op, keys, starts, lengths)
    if query.dim() != 3 or not query.is_contiguous():
        raise CacheError(f"query {tuple(query.shape)} is not (B, Hq, D) and contiguous", where=op)
    batch, heads = query.shape[:2]
    segments = len(starts)
    if (batch * heads == 0) != (segments == 0) or (segments and (segments % batch or batch * heads % segments)):
        what = f"{segments} segments do not match a query of {batch} rows and {heads} heads"
        raise CacheError(what, where=op, hint="there must be one segment for each batch row and KV head")


def refuse(segment: int, rows: int) -> NoReturn:
    """Raises CacheError for a segment that leaves the slab of `rows` rows."""
    what = f"its start or length leaves a slab of {rows} rows"
    raise CacheError(what, where=f"ragged_decode, segment {segment}")


def c_arguments(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    output: torch.Tensor,
    scaling: float,
) -> tuple[Any, ...]:
    """Returns the first arguments of the C functions, which both libraries share."""
    segments = starts.shape[0]
    group = query.shape[0] * query.shape[1] // max(segments, 1)
    sizes = segments, group, query.shape[2], keys.shape[0]
    output = checked("ragged_decode", "output", output, query.dtype, query.shape, query.device)
    return DTYPES[query.dtype], query, keys, values, starts, lengths, output, *sizes, scaling


def on_cpu(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Computes `ragged_decode` of checked tensors with the C++ library."""
    output = torch.empty_like(query)
    arguments = c_arguments(query, keys, values, starts, lengths, output, scaling)
    code = call_cpu("ragged_decode", *arguments, torch.get_num_threads())
    if code != DONE:
        refuse(code, keys.shape[0])
    return output


_COUNTERS: dict[tuple[int, int], torch.Tensor] = {}


def _counters(device: torch.device, count: int) -> torch.Tensor:
    """Returns (count,) int32 zeros on the device; kernels leave them zero, so that all calls of a stream share them."""
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)  # the graph may be replayed on another stream
    key = device.index, torch.cuda.current_stream(device).cuda_stream
    counters = _COUNTERS.get(key)
    if counters is None or len(counters) < count:
        counters = _COUNTERS[key] = torch.zeros(max(count, 4096), dtype=torch.int32, device=device)
    return counters[:count]


def on_cuda(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Computes `ragged_decode` of checked tensors with the CUDA library."""
    query, keys, values = aligned(query), aligned(keys), aligned(values)
    output = torch.empty_like(query)
    segments = starts.shape[0]
    if segments == 0:
        return output
    group, dim = query.shape[0] * query.shape[1] // segments, query.shape[2]
    loaded = library.cuda_library()
    assert loaded is not None
    with torch.cuda.device(query.device):
        room = loaded.sparsemm_cuda_ragged_decode_room(group, dim)
    op, partial = "ragged_decode", torch.empty(room, dtype=torch.float32, device=query.device)
    count = segments * -(-group // 8)
    counters = checked(op, "counters", _counters(query.device, count), torch.int32, (count,), query.device)
    arguments = c_arguments(query, keys, values, starts, lengths, output, scaling)
    call_cuda("ragged_decode", query.device, *arguments, partial, counters)
    return output


def _reference_on_cpu(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Computes the reference after checking that no segment leaves the slab, which would wait for a CUDA device."""
    rows = keys.shape[0]
    outside = first_true((starts < 0) | (lengths < 0) | (lengths > rows) | (starts > rows - lengths))
    if outside is not None:
        refuse(outside, rows)
    return reference(query, keys, values, starts, lengths, scaling)


# Backends: this package's kernel ("ours"), on a CUDA device torch's and flash-attn's, and the reference ("twin").
Decode = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
BACKENDS: dict[str, dict[str, Decode]] = {
    "cpu": {"ours": on_cpu, "twin": _reference_on_cpu},
    "cuda": {"ours": on_cuda, "varlen": decode_backends.varlen, "flash": decode_backends.flash, "twin": reference},
}


def usable(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> list[str]:
    """Lists the backends that support the tensors on their device, in order of preference.

    Ours is first: it alone reads the keys of a query group once, splits long heads at any lengths, and can be captured
    in a CUDA graph with its lengths on the device.
    """
    names = ["ours"] if serves(query, keys, values) else []
    if not query.is_cpu and not wants_gradient(query, keys, values):
        names += decode_backends.usable(query, keys)
    return [*names, "twin"]


def decodes(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Returns whether a backend other than the reference implementation supports the tensors."""
    return serves(query, keys, values) or usable(query, keys, values)[0] != "twin"


def decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Computes `ragged_decode` with the backend that $SPARSEMM_DECODE names, or else with the fastest measured one.

    Without either (see `sparsemm.ops.fastest`), it is the first usable backend.

    Raises:
        CacheError: if arguments are wrong, or the named backend does not support them.
    """
    check(query, keys, values, starts, lengths, scaling)
    required = os.environ.get("SPARSEMM_DECODE")
    backend = required or _fastest(query, keys, len(starts)) or "ours"
    if backend != "ours" or not serves(query, keys, values):  # listing all backends takes time
        names = usable(query, keys, values)
        if required and required not in names:
            what = f"SPARSEMM_DECODE={required} does not support these tensors"
            raise CacheError(what, hint=f"set it to one of {', '.join(names)}")
        backend = backend if backend in names else names[0]
    return BACKENDS[query.device.type][backend](query, keys, values, starts, lengths, scaling)


def _fastest(query: torch.Tensor, keys: torch.Tensor, segments: int) -> str | None:
    group = query.shape[0] * query.shape[1] // max(segments, 1)
    rows = keys.shape[0] // max(segments, 1)
    return fastest.backend(query.device, query.dtype, query.shape[-1], group, segments, rows)


_OP = register(
    "ragged_decode(Tensor query, Tensor keys, Tensor values, Tensor starts, Tensor lengths, float scaling) -> Tensor",
    decode,
    decode,
    check,
    lambda query, *_: torch.empty_like(query),
)
