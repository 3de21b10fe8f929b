"""Attention of one new token, every head over its own rows of a slab."""

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
    """softmax(q k^T * scaling) v of one query token per (batch row, query head) over its head's own rows.

    Args:
        query: (B, Hq, D) fp32, fp16, bf16 or fp64, contiguous; query head h reads KV head h // (Hq / Hkv).
        keys, values: (rows, D), contiguous, of the query's dtype.
        starts, lengths: (B * Hkv,) int64, contiguous; head i owns rows starts[i] ... starts[i] + lengths[i] - 1.
        scaling: factor of the logits.

    Returns:
        (B, Hq, D); accumulated in fp32 or better; zeros for a head without rows.

    Raises:
        CacheError: if dtypes, shapes, strides or devices do not fit, or (on the CPU) a segment leaves the slab.
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
    """`ragged_decode` by padding every head to the longest."""
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
    """Raise CacheError for arguments that do not fit."""
    op = "ragged_decode"
    check_slab(op, keys, values, query, query)
    check_segments(op, keys, starts, lengths)
    if query.dim() != 3 or not query.is_contiguous():
        raise CacheError(f"query {tuple(query.shape)} is not (B, Hq, D) and contiguous", where=op)
    batch, heads = query.shape[:2]
    segments = len(starts)
    if (batch * heads == 0) != (segments == 0) or (segments and (segments % batch or batch * heads % segments)):
        what = f"{segments} segments do not serve a query of {batch} rows and {heads} heads"
        raise CacheError(what, where=op, hint="there is one for each batch row and KV head")


def refuse(segment: int, rows: int) -> NoReturn:
    """Raise the CacheError of a segment that leaves the slab of `rows` rows."""
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
    """What the C functions of both libraries begin with."""
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
    """`ragged_decode` of checked tensors by the C++ library."""
    output = torch.empty_like(query)
    arguments = c_arguments(query, keys, values, starts, lengths, output, scaling)
    code = call_cpu("ragged_decode", *arguments, torch.get_num_threads())
    if code != DONE:
        refuse(code, keys.shape[0])
    return output


_COUNTERS: dict[tuple[int, int], torch.Tensor] = {}


def _counters(device: torch.device, count: int) -> torch.Tensor:
    """(count,) int32 zeros on the device; kernels leave them zero, so that one set serves all calls of a stream."""
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)  # the graph's own: it may be replayed elsewhere
    key = device.index, torch.cuda.current_stream(device).cuda_stream
    held = _COUNTERS.get(key)
    if held is None or len(held) < count:
        held = _COUNTERS[key] = torch.zeros(max(count, 4096), dtype=torch.int32, device=device)
    return held[:count]


def on_cuda(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """`ragged_decode` of checked tensors by the CUDA library."""
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
    """The reference, after a look for segments outside the slab; on a CUDA device that would wait for the device."""
    rows = keys.shape[0]
    outside = first_true((starts < 0) | (lengths < 0) | (lengths > rows) | (starts > rows - lengths))
    if outside is not None:
        refuse(outside, rows)
    return reference(query, keys, values, starts, lengths, scaling)


# Who can compute it: this package's kernel, on a CUDA device torch's or flash-attn's, or plain PyTorch.
Decode = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
BACKENDS: dict[str, dict[str, Decode]] = {
    "cpu": {"ours": on_cpu, "twin": _reference_on_cpu},
    "cuda": {"ours": on_cuda, "varlen": decode_backends.varlen, "flash": decode_backends.flash, "twin": reference},
}


def usable(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> list[str]:
    """The backends that can serve such tensors on their device, in order of preference.

    Ours first: it alone reads the keys of a query group once, splits long heads whatever the lengths are, and is
    captured in a CUDA graph with its lengths on the device.
    """
    names = ["ours"] if serves(query, keys, values) else []
    if not query.is_cpu and not wants_gradient(query, keys, values):
        names += decode_backends.usable(query, keys)
    return [*names, "twin"]


def decodes(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether `ragged_decode` of such tensors is more than its reference implementation."""
    return serves(query, keys, values) or usable(query, keys, values)[0] != "twin"


def decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """`ragged_decode` by the backend that $SPARSEMM_DECODE names, or that was measured fastest.

    Without either (see `sparsemm.ops.fastest`) it is the first usable one.

    Raises:
        CacheError: if the arguments do not fit, or the named one cannot serve.
    """
    check(query, keys, values, starts, lengths, scaling)
    wanted = os.environ.get("SPARSEMM_DECODE")
    chosen = wanted or _fastest(query, keys, len(starts)) or "ours"
    if chosen != "ours" or not serves(query, keys, values):  # else the others need not be looked at, which takes time
        names = usable(query, keys, values)
        if wanted and wanted not in names:
            raise CacheError(f"SPARSEMM_DECODE={wanted} cannot serve here", hint=f"one of {', '.join(names)} can")
        chosen = chosen if chosen in names else names[0]
    return BACKENDS[query.device.type][chosen](query, keys, values, starts, lengths, scaling)


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
