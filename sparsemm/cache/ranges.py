"""Indices that leave the slab or the keys: what is said of them on the CPU, and their search before a twin runs.

The C++ library looks for itself and writes nothing then. On a CUDA device they cannot be refused before the kernel
runs, which would mean to wait for it: see sparsemm/cache/cuda.py.
"""

from __future__ import annotations

from typing import NoReturn

import torch

from sparsemm.errors import CacheError

_SAID = {
    "ragged_decode": "its start or length leaves a slab of {} rows",
    "append": "it has no room for another row before the next stretch, in a slab of {} rows",
    "compact": "what it keeps does not fit before the next stretch, in a slab of {} rows",
    "argmax_rows": "it sees beyond {} keys",
    "causal_attention": "its tokens are not a stretch of {} positions",
}


def refuse(op: str, index: int, rows: int) -> NoReturn:
    """Raise the CacheError of a stretch (a row, a sample) that leaves a slab, or the keys, of `rows` rows."""
    unit = {"argmax_rows": "row", "causal_attention": "sample"}.get(op, "stretch")
    raise CacheError(_SAID[op].format(rows), where=f"{op}, {unit} {index}")


def ragged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> None:
    """Raise CacheError for a stretch outside the slab."""
    rows = keys.shape[0]
    _refuse_first("ragged_decode", (starts < 0) | (lengths < 0) | (lengths > rows) | (starts > rows - lengths), rows)


def append(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """Raise CacheError for a stretch without room for one more row."""
    rows = keys.shape[0]
    ends = _ends(starts, rows)
    _refuse_first("append", (starts < 0) | (lengths < 0) | (ends > rows) | (lengths >= ends - starts), rows)


def compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    full_keys: torch.Tensor,
    full_values: torch.Tensor,
    keep: torch.Tensor,
    starts: torch.Tensor,
) -> None:
    """Raise CacheError for a stretch without room for what it keeps."""
    rows = keys.shape[0]
    ends = _ends(starts, rows)
    kept = keep.flatten(0, 1).sum(-1)
    _refuse_first("compact", (starts < 0) | (ends > rows) | (starts > ends) | (kept > ends - starts), rows)


def argmax_rows(query: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor) -> None:
    """Raise CacheError for a row that sees beyond the keys."""
    _refuse_first("argmax_rows", (begins < 0) | (ends > keys.shape[1]), keys.shape[1])


def causal_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    firsts: torch.Tensor,
    stops: torch.Tensor,
    scaling: float,
) -> None:
    """Raise CacheError for a sample whose tokens leave the sequence."""
    length = query.shape[2]
    _refuse_first("causal_attention", (firsts < 0) | (firsts > stops) | (stops > length), length)


def _ends(starts: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([starts[1:], starts.new_full((min(len(starts), 1),), rows)])


def _refuse_first(op: str, bad: torch.Tensor, rows: int) -> None:
    if bool(bad.any()):
        refuse(op, int(bad.nonzero()[0]), rows)
