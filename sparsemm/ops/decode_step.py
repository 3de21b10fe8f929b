"""One decode step of one layer on the CPU: `append` and `ragged_decode` in one call of the C++ library.

The result is that of the two operations one after the other, but their checks are written out in one place: this runs
for every token of every layer, where a Python call costs as much as the arithmetic of a small head.
"""

from __future__ import annotations

import os

import torch

from sparsemm.ops import append, fastest
from sparsemm.ops.library import DONE, DTYPES, NO_MEMORY, library, serves


def serves_steps(keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Returns whether `decode_step` supports a slab with these buffers (rows, D); called once, when it is allocated.

    False if the library does not support them, or if $SPARSEMM_DECODE or a measurement prefers another backend.
    """
    if not keys.is_cpu or not serves(keys, values) or os.environ.get("SPARSEMM_DECODE", "ours") != "ours":
        return False
    return all(shape["backend"] == "ours" for shape in fastest.measured(keys.device))


def decode_step(
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    query: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    scaling: float,
) -> torch.Tensor | None:
    """Appends one token to every segment, and computes its attention over its head's own rows.

    Args:
        keys, values: (rows, D), contiguous; changed.
        starts, lengths: (B * Hkv,) int64, contiguous; 1 is added to the lengths.
        query: (B, Hq, 1, D) of the keys' dtype, any strides.
        new_keys, new_values: (B, Hkv, 1, D) of the same dtype, any strides.
        scaling: factor of the logits.

    Returns:
        (B, 1, Hq, D), equal to `append` followed by `ragged_decode`; None, with nothing changed, where shapes, dtypes,
        devices, autograd or torch.compile require the separate operations, which raise an error if need be.

    Raises:
        CacheError: if a segment has no room or leaves the slab.
        MemoryError: if there is no memory for partial results; the token is appended then.
    """
    segments, dim, dtype = lengths.shape[0], keys.shape[1], keys.dtype
    batch, heads = query.shape[0], query.shape[1]
    if (
        query.dtype != dtype
        or new_keys.dtype != dtype
        or new_values.dtype != dtype
        or values.dtype != dtype
        or not (keys.is_cpu and values.is_cpu and query.is_cpu and new_keys.is_cpu and new_values.is_cpu)
        or not (keys.is_contiguous() and values.is_contiguous() and values.shape == keys.shape)
        or not (starts.is_cpu and lengths.is_cpu and starts.is_contiguous() and lengths.is_contiguous())
        or not starts.dtype == lengths.dtype == torch.int64
        or starts.shape != lengths.shape
        or query.shape[2:] != (1, dim)
        or new_keys.shape != (batch, segments // max(batch, 1), 1, dim)
        or new_values.shape != new_keys.shape
        or batch * new_keys.shape[1] != segments
        or not segments
        or heads % new_keys.shape[1]
        or (torch.is_grad_enabled() and (query.requires_grad or new_keys.requires_grad or new_values.requires_grad))
        or torch.compiler.is_compiling()
    ):
        return None
    compiled = library()
    if compiled is None:
        return None
    query, new_keys, new_values = query.contiguous(), new_keys.contiguous(), new_values.contiguous()
    output = torch.empty((batch, 1, heads, dim), dtype=dtype, device="cpu")
    rows = keys.shape[0]
    code = compiled.sparsemm_decode_step(
        DTYPES[dtype],
        query.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        new_keys.data_ptr(),
        new_values.data_ptr(),
        starts.data_ptr(),
        lengths.data_ptr(),
        output.data_ptr(),
        segments,
        batch * heads // segments,
        dim,
        dim * keys.element_size(),
        rows,
        scaling,
        torch.get_num_threads(),
    )
    if code == NO_MEMORY:
        raise MemoryError("sparsemm_decode_step: no memory for partial results")
    if code != DONE:
        append.refuse(code, rows)
    return output
