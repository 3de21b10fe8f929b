"""Arguments of the operations, good ones, for the tests that compute with them, damage them and build them."""

from __future__ import annotations

import shutil

import pytest
import torch

from sparsemm.ops import library

DTYPES = list(library.DTYPES)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of values about 1: half an ulp and fp32
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")


def ragged(lengths, dim, dtype, gaps, seed):
    """A slab whose segments have room behind them, (keys, values, starts, lengths)."""
    torch.manual_seed(seed)
    lengths = torch.tensor(lengths, dtype=torch.int64)
    ends = (lengths + torch.tensor(gaps)).cumsum(0)
    starts = ends - lengths - torch.tensor(gaps)
    total = int(ends[-1]) if len(ends) else 0
    return (
        torch.randn(total, dim, dtype=torch.float32).to(dtype),
        torch.randn(total, dim, dtype=torch.float32).to(dtype),
        starts,
        lengths,
    )


DECODE = ["query", "keys", "values", "starts", "lengths", "scaling"]
APPEND = ["keys", "values", "new_keys", "new_values", "starts", "lengths"]
COMPACT = ["keys", "values", "full_keys", "full_values", "keep", "starts"]
OBSERVE = ["query", "keys", "valid", "pooling", "scaling"]
ARGMAX = ["query", "keys", "begins", "ends"]
CAUSAL = ["query", "keys", "values", "firsts", "stops", "scaling"]


def arguments(op):
    torch.manual_seed(0)
    if op == "observe":
        query, keys, valid = (
            torch.randn(2, 4, 2, 8, dtype=torch.float32),
            torch.randn(2, 2, 9, 8, dtype=torch.float32),
            torch.ones(2, 9, dtype=torch.bool),
        )
        return dict(zip(OBSERVE, [query, keys, valid, 3, 0.5], strict=True))
    if op == "argmax_rows":
        ends = torch.tensor([2, 5, 9])
        return dict(
            zip(
                ARGMAX,
                [torch.randn(4, 3, 8, dtype=torch.float32), torch.randn(2, 9, 8, dtype=torch.float32), ends - 2, ends],
                strict=True,
            )
        )
    if op == "causal_attention":
        query, keys, values = (
            torch.randn(2, 4, 9, 8, dtype=torch.float32),
            torch.randn(2, 2, 9, 8, dtype=torch.float32),
            torch.randn(2, 2, 9, 8, dtype=torch.float32),
        )
        firsts, stops = torch.tensor([0, 3]), torch.tensor([9, 8])
        return dict(zip(CAUSAL, [query, keys, values, firsts, stops, 0.5], strict=True))
    keys, values, starts, lengths = ragged([2, 3, 1, 4], 8, torch.float32, [1] * 4, 0)
    if op == "ragged_decode":
        return dict(
            zip(DECODE, [torch.randn(2, 4, 8, dtype=torch.float32), keys, values, starts, lengths, 1.0], strict=True)
        )
    if op == "append":
        new = torch.randn(2, 4, 8, dtype=torch.float32)
        return dict(zip(APPEND, [keys, values, new[0], new[1], starts, lengths], strict=True))
    full, keep = torch.randn(2, 2, 3, 8, dtype=torch.float32), torch.ones(2, 2, 3, dtype=torch.bool)
    keep[1] = False
    return dict(zip(COMPACT, [keys, values, full, full, keep, starts], strict=True))
