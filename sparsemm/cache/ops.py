"""One dispatch for the cache's operations: a compiled library where one serves, the PyTorch twin everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sparsemm.cache import backends, checks, cpu, cuda, ranges, twins
from sparsemm.cache.library import serves


def decodes(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether `ragged_decode` of such tensors is more than its twin."""
    return serves(query, keys, values) or backends.usable(query, keys, values)[0] != "twin"


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
        checks.ragged_decode(query, keys, values, starts, lengths, scaling)
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
    cpu.append(keys, values, new_keys.contiguous(), new_values.contiguous(), starts, lengths)


def observe(query: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, pooling: int, scaling: float) -> torch.Tensor:
    """What a prompt's last rows look at (SnapKV, arXiv 2404.14469), without a matrix of all weights.

    A = softmax(q k^T * scaling), causal, in fp32; mean over the w rows; over the S - w positions before them an
    average pool of `pooling` (zeros beyond the ends); mean over the query group.

    Args:
        query: (B, Hq, w, D) fp32, fp16, bf16 or fp64, the last w rows of the prompt.
        keys: (B, Hkv, S, D) of the same dtype, 1 <= w <= S unless both are 0.
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


def causal_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    firsts: torch.Tensor,
    stops: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """softmax(q k^T * scaling) v of whole prompts, causal, without a mask; samples are padded to one length.

    Args:
        query: (B, Hq, S, D) fp32, fp16, bf16 or fp64; query head h reads KV head h // (Hq / Hkv).
        keys, values: (B, Hkv, S, D) of the same dtype.
        firsts, stops: (B,) int64; sample b's tokens are positions firsts[b] ... stops[b] - 1, all else is padding.
        scaling: factor of the logits.

    Returns:
        (B, S, Hq, D); accumulated in fp32 or better; zeros on padding.

    Raises:
        CacheError: if dtypes, shapes or devices do not fit, or (on the CPU) tokens leave the sequence.
    """
    if torch.is_grad_enabled() and (query.requires_grad or keys.requires_grad or values.requires_grad):
        checks.causal_attention(query, keys, values, firsts, stops, scaling)
        return twins.causal_attention(query, keys, values, firsts, stops, scaling)
    return _OPS["causal_attention"](query, keys, values, firsts, stops, scaling)


# What torch.library calls: the checks, then a library or the twin.


def _checked(check: Callable[..., None], run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` of arguments that `check` lets pass."""

    def checked(*arguments: Any) -> Any:
        check(*arguments)
        return run(*arguments)

    return checked


def _served(run: Callable[..., Any], twin: Callable[..., Any], first: int = 2) -> Callable[..., Any]:
    """`run` where a library serves the `first` arguments, `twin` elsewhere."""

    def served(*arguments: Any) -> Any:
        return (run if serves(*arguments[:first]) else twin)(*arguments)

    return served


_SLAB = "Tensor(a!) keys, Tensor(b!) values, "
_STRETCHES = "Tensor starts, Tensor lengths"
_LIBRARY = torch.library.Library("sparsemm", "FRAGMENT")
_OPS: dict[str, Any] = {}  # found once: torch.ops looks a name up at every call


def _register(schema: str, on_cpu: Callable[..., Any], on_cuda: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = _LIBRARY.define(schema)
    check = getattr(checks, name)
    _LIBRARY.impl(name, _checked(check, on_cpu), "CPU")
    _LIBRARY.impl(name, _checked(check, on_cuda), "CUDA")
    torch.library.register_fake(f"sparsemm::{name}", _checked(check, fake), lib=_LIBRARY)
    _OPS[name] = getattr(torch.ops.sparsemm, name).default


_register(
    f"ragged_decode(Tensor query, Tensor keys, Tensor values, {_STRETCHES}, float scaling) -> Tensor",
    backends.decode,
    backends.decode,
    lambda query, *_: torch.empty_like(query),
)
_register(
    f"append({_SLAB}Tensor new_keys, Tensor new_values, {_STRETCHES}) -> ()",
    _served(cpu.append, _checked(ranges.append, twins.append)),
    _served(cuda.append, twins.append),
    lambda *_: None,
)
_register(
    f"compact({_SLAB}Tensor full_keys, Tensor full_values, Tensor keep, Tensor starts) -> ()",
    _served(cpu.compact, _checked(ranges.compact, twins.compact)),
    _served(cuda.compact, twins.compact),
    lambda *_: None,
)
_register(
    "observe(Tensor query, Tensor keys, Tensor valid, int pooling, float scaling) -> Tensor",
    _served(cpu.observe, twins.observe),
    _served(cuda.observe, twins.observe),
    lambda _, keys, *__: keys.new_empty(keys.shape[:3], dtype=torch.float32),
)
_register(
    "argmax_rows(Tensor query, Tensor keys, Tensor begins, Tensor ends) -> Tensor",
    _served(cpu.argmax_rows, _checked(ranges.argmax_rows, twins.argmax_rows)),
    _served(cuda.argmax_rows, twins.argmax_rows),
    lambda query, *_: query.new_empty(query.shape[:2], dtype=torch.int64),
)
_register(
    "causal_attention(Tensor query, Tensor keys, Tensor values, Tensor firsts, Tensor stops, float scaling) -> Tensor",
    _served(cpu.causal_attention, _checked(ranges.causal_attention, twins.causal_attention), first=3),
    twins.causal_attention,
    lambda query, *_: query.new_empty([query.shape[i] for i in (0, 2, 1, 3)]),
)
