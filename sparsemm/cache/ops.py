"""One dispatch for the cache's operations: a compiled library where one serves, the PyTorch twin everywhere else."""

from __future__ import annotations

from typing import Any

import torch

from sparsemm.cache import backends, checks, cuda, twins
from sparsemm.cache.library import DONE, DTYPES, NO_MEMORY, available, library, serves
from sparsemm.errors import CacheError

__all__ = [
    "append",
    "append_row",
    "argmax_rows",
    "available",
    "compact",
    "decodes",
    "observe",
    "ragged_decode",
    "serves",
]


def decodes(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether `ragged_decode` of such tensors is more than its twin."""
    if query.is_cuda:
        return backends.usable(query, keys, values)[0] != "twin"
    return serves(query, keys, values)


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
        checks.ragged_decode(query, keys, values, starts, lengths)
        return twins.ragged_decode(query, keys, values, starts, lengths, scaling)
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
        checks.append(keys, values, new_keys, new_values, starts, lengths)
        return twins.append(keys, values, new_keys, new_values, starts, lengths)
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
        checks.compact(keys, values, full_keys, full_values, keep, starts)
        return twins.compact(keys, values, full_keys, full_values, keep, starts)
    return _OPS["compact"](keys, values, full_keys, full_values, keep, starts)


def append_row(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """`append` for a caller whose slab is known to fit: it runs at every step, and the checks cost more than the copy.

    The caller answers for the slab's shapes, strides and devices; the new rows and the room are looked at all the same.

    Args:
        new_keys, new_values: (B, Hkv, 1, D) or any shape of as many numbers in that order.

    Raises:
        CacheError: as `append`.
    """
    numbers = lengths.shape[0] * keys.shape[1]
    if (
        torch.compiler.is_compiling()
        or not keys.is_cpu
        or not new_keys.is_cpu
        or not new_values.is_cpu
        or not (keys.dtype == new_keys.dtype == new_values.dtype)
        or not (numbers == new_keys.numel() == new_values.numel())
        or not serves(keys, new_keys, new_values)
    ):
        rows = [new.reshape(-1, keys.shape[1]).contiguous() for new in (new_keys, new_values)]
        return append(keys, values, rows[0], rows[1], starts, lengths)
    loaded = library()
    assert loaded is not None
    new_keys, new_values = new_keys.contiguous(), new_values.contiguous()
    code = loaded.sparsemm_append(
        keys.data_ptr(),
        values.data_ptr(),
        new_keys.data_ptr(),
        new_values.data_ptr(),
        starts.data_ptr(),
        lengths.data_ptr(),
        lengths.shape[0],
        keys.shape[1] * keys.element_size(),
        keys.shape[0],
    )
    if code != DONE:
        _outcome("append", code, _NO_ROOM.format(keys.shape[0]))


def observe(query: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, pooling: int, scaling: float) -> torch.Tensor:
    """What a prompt's last rows look at (SnapKV, arXiv 2404.14469), without a matrix of all weights.

    A = softmax(q k^T * scaling), causal, in fp32; mean over the w rows; over the S - w positions before them an
    average pool of `pooling` (zeros beyond the ends); mean over the query group.

    Args:
        query: (B, Hq, w, D) fp32, fp16, bf16 or fp64, the last w rows of the prompt.
        keys: (B, Hkv, S, D) of the same dtype, w <= S.
        valid: (B, S) bool, false on padding.
        pooling: odd width of the pool.
        scaling: factor of the logits.

    Returns:
        (B, Hkv, S) fp32; -inf on padding and at the last w positions.

    Raises:
        CacheError: if dtypes, shapes or devices do not fit.
    """
    return _OPS["observe"](query.detach(), keys.detach(), valid, pooling, scaling)


def argmax_rows(query: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Position of the key with the largest q.k among those a row may see.

    Products and sums are in fp64, where those of narrower numbers hardly round: the position does not depend on the
    device, the number of threads or the order of a sum. Of equal keys the first one wins; a NaN is the largest.

    Args:
        query: (Hq, T, D) fp32, fp16, bf16 or fp64; query head h reads KV head h // (Hq / Hkv).
        keys: (Hkv, S, D) of the same dtype.
        begins, ends: (T,) int64; row t sees keys begins[t] ... ends[t] - 1.

    Returns:
        (Hq, T) int64; 0 for a row that sees nothing.

    Raises:
        CacheError: if dtypes, shapes or devices do not fit, or (on the CPU) a row sees beyond the keys.
    """
    return _OPS["argmax_rows"](query.detach(), keys.detach(), begins, ends)


def _first(bad: torch.Tensor) -> int:
    return int(bad.nonzero()[0]) if bool(bad.any()) else DONE


def _ends(starts: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([starts[1:], starts.new_full((min(len(starts), 1),), rows)])


_OUTSIDE = "its start or length leaves a slab of {} rows"
_NO_ROOM = "it has no room for another row before the next stretch, in a slab of {} rows"
_TOO_MANY = "what it keeps does not fit before the next stretch, in a slab of {} rows"


def _outcome(op: str, code: int, what: str, unit: str = "stretch") -> None:
    if code == NO_MEMORY:
        raise MemoryError(f"{op}: no memory for partial results")
    if code != DONE:
        raise CacheError(what, where=f"{op}, {unit} {code}")


# What torch.library calls, on every device: checks, then a library or the twin. Out-of-range indices on a CUDA device
# cannot be refused before the kernel runs, which would mean to wait for it: see sparsemm/cache/cuda.py.


def _ragged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    checks.ragged_decode(query, keys, values, starts, lengths)
    rows, stretches = keys.shape[0], starts.shape[0]
    if keys.is_cuda:
        return backends.decode(query, keys, values, starts, lengths, scaling)
    loaded = library() if serves(query, keys, values) else None
    if loaded is None:
        bad = (starts < 0) | (lengths < 0) | (lengths > rows) | (starts > rows - lengths)
        _outcome("ragged_decode", _first(bad), _OUTSIDE.format(rows))
        return twins.ragged_decode(query, keys, values, starts, lengths, scaling)
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
    _outcome("ragged_decode", code, _OUTSIDE.format(rows))
    return output


def _append(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    checks.append(keys, values, new_keys, new_values, starts, lengths)
    rows = keys.shape[0]
    served = serves(keys, values)
    if keys.is_cuda:
        return (cuda if served else twins).append(keys, values, new_keys, new_values, starts, lengths)
    loaded = library() if served else None
    if loaded is None:
        ends = _ends(starts, rows)
        bad = (starts < 0) | (lengths < 0) | (ends > rows) | (lengths >= ends - starts)
        _outcome("append", _first(bad), _NO_ROOM.format(rows))
        return twins.append(keys, values, new_keys, new_values, starts, lengths)
    code = loaded.sparsemm_append(
        keys.data_ptr(),
        values.data_ptr(),
        new_keys.data_ptr(),
        new_values.data_ptr(),
        starts.data_ptr(),
        lengths.data_ptr(),
        starts.shape[0],
        keys.shape[1] * keys.element_size(),
        rows,
    )
    _outcome("append", code, _NO_ROOM.format(rows))


def _compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    full_keys: torch.Tensor,
    full_values: torch.Tensor,
    keep: torch.Tensor,
    starts: torch.Tensor,
) -> None:
    checks.compact(keys, values, full_keys, full_values, keep, starts)
    rows = keys.shape[0]
    served = serves(keys, values)
    if keys.is_cuda:
        return (cuda if served else twins).compact(keys, values, full_keys, full_values, keep, starts)
    loaded = library() if served else None
    if loaded is None:
        ends = _ends(starts, rows)
        bad = (starts < 0) | (ends > rows) | (starts > ends) | (keep.flatten(0, 1).sum(-1) > ends - starts)
        _outcome("compact", _first(bad), _TOO_MANY.format(rows))
        return twins.compact(keys, values, full_keys, full_values, keep, starts)
    code = loaded.sparsemm_compact(
        keys.data_ptr(),
        values.data_ptr(),
        full_keys.data_ptr(),
        full_values.data_ptr(),
        keep.data_ptr(),
        starts.data_ptr(),
        *full_keys.shape[:3],
        keys.shape[1] * keys.element_size(),
        rows,
        cuda.strides(full_keys),
        cuda.strides(full_values),
        torch.get_num_threads(),
    )
    _outcome("compact", code, _TOO_MANY.format(rows))


def _observe(
    query: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, pooling: int, scaling: float
) -> torch.Tensor:
    checks.observe(query, keys, valid, pooling)
    if not serves(query, keys):
        return twins.observe(query, keys, valid, pooling, scaling)
    query, keys, valid = cuda.dense_rows(query), cuda.dense_rows(keys), valid.contiguous()
    if keys.is_cuda:
        return cuda.observe(query, keys, valid, pooling, scaling)
    loaded = library()
    assert loaded is not None
    batch, heads, length, dim = keys.shape
    output = torch.empty(batch, heads, length)
    code = loaded.sparsemm_observe(
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
        cuda.strides(query),
        cuda.strides(keys),
        pooling,
        scaling,
        torch.get_num_threads(),
    )
    _outcome("observe", code, "")
    return output


def _argmax_rows(query: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    checks.argmax_rows(query, keys, begins, ends)
    served = serves(query, keys)
    if served:
        query, keys = cuda.dense_rows(query), cuda.dense_rows(keys)
    begins, ends = begins.contiguous(), ends.contiguous()
    if keys.is_cuda:
        return (cuda if served else twins).argmax_rows(query, keys, begins, ends)
    heads, length, dim = keys.shape
    what = f"it sees beyond {length} keys"
    if not served:
        _outcome("argmax_rows", _first((begins < 0) | (ends > length)), what, "row")
        return twins.argmax_rows(query, keys, begins, ends)
    loaded = library()
    assert loaded is not None
    output = torch.empty(query.shape[:2], dtype=torch.int64)
    code = loaded.sparsemm_argmax_rows(
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
        cuda.strides(query),
        cuda.strides(keys),
        torch.get_num_threads(),
    )
    _outcome("argmax_rows", code, what, "row")
    return output


def _ragged_decode_fake(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    checks.ragged_decode(query, keys, values, starts, lengths)
    return torch.empty_like(query)


def _observe_fake(
    query: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, pooling: int, scaling: float
) -> torch.Tensor:
    checks.observe(query, keys, valid, pooling)
    return keys.new_empty(keys.shape[:3], dtype=torch.float32)


def _argmax_rows_fake(
    query: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    checks.argmax_rows(query, keys, begins, ends)
    return query.new_empty(query.shape[:2], dtype=torch.int64)


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
    (f"append({_SLAB}Tensor new_keys, Tensor new_values, {_STRETCHES}) -> ()", _append, checks.append),
    (
        f"compact({_SLAB}Tensor full_keys, Tensor full_values, Tensor keep, Tensor starts) -> ()",
        _compact,
        checks.compact,
    ),
    (
        "observe(Tensor query, Tensor keys, Tensor valid, int pooling, float scaling) -> Tensor",
        _observe,
        _observe_fake,
    ),
    (
        "argmax_rows(Tensor query, Tensor keys, Tensor begins, Tensor ends) -> Tensor",
        _argmax_rows,
        _argmax_rows_fake,
    ),
):
    _name = _LIBRARY.define(_schema)
    for _device in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _function, _device)
    torch.library.register_fake(f"sparsemm::{_name}", _fake, lib=_LIBRARY)
    _OPS[_name] = getattr(torch.ops.sparsemm, _name).default
