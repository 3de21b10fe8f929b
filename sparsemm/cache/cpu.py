"""Calls of the C++ library. It looks for indices out of range before it writes anything."""

from __future__ import annotations

import torch

from sparsemm.cache import arguments, ranges
from sparsemm.cache.arguments import dense_rows
from sparsemm.cache.library import DONE, NO_MEMORY, library


def _call(name: str, rows: int, *given: object) -> None:
    """Raise what the library's answer means; `rows` of the slab, or keys, are what an index may name."""
    loaded = library()
    assert loaded is not None
    code = getattr(loaded, f"sparsemm_{name}")(*given)
    if code == NO_MEMORY:
        raise MemoryError(f"{name}: no memory for partial results")
    if code != DONE:
        ranges.refuse(name, code, rows)


def ragged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """`ops.ragged_decode` of checked tensors."""
    output = torch.empty_like(query)
    given = arguments.ragged_decode(query, keys, values, starts, lengths, output, scaling, "cpu")
    _call("ragged_decode", keys.shape[0], *given, torch.get_num_threads())
    return output


def append(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """`ops.append` of checked tensors; the new rows may have any shape of as many numbers in that order."""
    _call("append", keys.shape[0], *arguments.append(keys, values, new_keys, new_values, starts, lengths, "cpu"))


def compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    full_keys: torch.Tensor,
    full_values: torch.Tensor,
    keep: torch.Tensor,
    starts: torch.Tensor,
) -> None:
    """`ops.compact` of checked tensors."""
    given = arguments.compact(keys, values, full_keys, full_values, keep, starts, "cpu")
    _call("compact", keys.shape[0], *given, torch.get_num_threads())


def observe(query: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, pooling: int, scaling: float) -> torch.Tensor:
    """`ops.observe` of checked tensors."""
    query, keys, valid = dense_rows(query), dense_rows(keys), valid.contiguous()
    output = torch.empty(keys.shape[:3], dtype=torch.float32, device="cpu")
    given = arguments.observe(query, keys, valid, output, pooling, scaling, "cpu")
    _call("observe", keys.shape[2], *given, torch.get_num_threads())
    return output


def causal_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    firsts: torch.Tensor,
    stops: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """`ops.causal_attention` of checked tensors."""
    query, keys, values = dense_rows(query), dense_rows(keys), dense_rows(values)
    firsts, stops = firsts.contiguous(), stops.contiguous()
    output = torch.zeros(query.transpose(1, 2).shape, dtype=query.dtype, device=query.device)
    given = arguments.causal_attention(query, keys, values, firsts, stops, output, scaling, "cpu")
    length, dim = query.shape[2:]
    threads = max(1, min(torch.get_num_threads(), keys.shape[0] * keys.shape[1]))
    loaded = library()
    assert loaded is not None
    size = threads * loaded.sparsemm_causal_attention_room(length, dim)
    room = torch.empty(size, dtype=torch.float32, device="cpu")
    scratch = arguments.address("causal_attention", "room", room, torch.float32, (size,), query.device)
    _call("causal_attention", length, *given, scratch, threads)
    return output


def argmax_rows(query: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """`ops.argmax_rows` of checked tensors."""
    query, keys, begins, ends = dense_rows(query), dense_rows(keys), begins.contiguous(), ends.contiguous()
    output = torch.empty(query.shape[:2], dtype=torch.int64, device="cpu")
    given = arguments.argmax_rows(query, keys, begins, ends, output, "cpu")
    _call("argmax_rows", keys.shape[1], *given, torch.get_num_threads())
    return output
