"""The operations at their edges, and as torch.library sees them, with the library and without it."""

from __future__ import annotations

import pytest
import torch

from sparsemm.ops.append import append
from sparsemm.ops.argmax_rows import argmax_rows
from sparsemm.ops.causal_attention import causal_attention
from sparsemm.ops.compact import compact
from sparsemm.ops.observe import observe
from sparsemm.ops.ragged_decode import ragged_decode
from tests.ops.operations import DTYPES, arguments, ragged


def test_observe_and_argmax_rows_with_nothing_to_do(both):
    query, keys = torch.randn(2, 4, 3, 8, dtype=torch.float32), torch.randn(2, 2, 3, 8, dtype=torch.float32)
    real = torch.ones(2, 3, dtype=torch.bool)
    assert torch.isneginf(observe(query, keys, real, 5, 1.0)).all()  # all window
    assert observe(query[:, :, :0], keys[:, :, :0], real[:, :0], 5, 1.0).shape == (2, 2, 0)
    assert observe(query[:0], keys[:0], real[:0], 5, 1.0).shape == (0, 2, 3)
    none = torch.zeros(0, dtype=torch.int64)
    assert argmax_rows(query[0, :, :0], keys[0], none, none).shape == (4, 0)
    zero, one = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    assert not argmax_rows(query[0], keys[0, :, :0], zero, zero).any()
    assert not argmax_rows(query[0], keys[0], zero, one).any()


def test_infinities_and_nans_of_observe_and_argmax_rows(both):
    query, keys = torch.ones(1, 2, 2, 8, dtype=torch.float32), torch.rand(1, 1, 70, 8, dtype=torch.float32)
    real = torch.ones(1, 70, dtype=torch.bool)
    keys[0, 0, 5] = float("inf")
    keys[0, 0, 7] = float("-inf")
    assert argmax_rows(query[0], keys[0], torch.tensor([0, 7]), torch.tensor([70, 8])).tolist() == [[5, 0]] * 2
    assert not observe(query, keys, real, 3, 1.0)[..., :68].any()  # softmax of an infinity is NaN: counts as 0
    keys[0, 0, 66, 3] = float("nan")
    assert argmax_rows(query[0], keys[0], torch.tensor([0, 0]), torch.tensor([70, 66])).tolist() == [[66, 5]] * 2


def test_causal_attention_with_nothing_to_do(both):
    query, keys, none = (
        torch.randn(2, 4, 3, 8, dtype=torch.float32),
        torch.randn(2, 2, 3, 8, dtype=torch.float32),
        torch.zeros(2, dtype=torch.int64),
    )
    assert not causal_attention(query, keys, keys, none + 2, none + 2, 1.0).any()  # all padding
    assert causal_attention(query[:0], keys[:0], keys[:0], none[:0], none[:0], 1.0).shape == (0, 3, 4, 8)
    empty = keys[:, :, :0]
    assert causal_attention(query[:, :, :0], empty, empty, none, none, 1.0).shape == (2, 0, 4, 8)


def test_causal_attention_of_large_logits_infinities_and_nans(both):
    query, keys, values = (
        torch.ones(1, 1, 40, 8, dtype=torch.float32),
        torch.rand(1, 1, 40, 8, dtype=torch.float32),
        torch.randn(1, 1, 40, 8, dtype=torch.float32),
    )
    whole = torch.tensor([0]), torch.tensor([40])
    keys[0, 0, 20] += 300.0  # nothing else counts
    got = causal_attention(query, keys, values, *whole, 1.0)[0, :, 0]
    torch.testing.assert_close(got[20:], values[0, 0, 20].expand(20, 8))
    assert not torch.allclose(got[19], values[0, 0, 20])
    keys[0, 0, 20] = float("nan")
    got = causal_attention(query, keys, values, *whole, 1.0)[0, :, 0]
    assert got[20:].isnan().all() and not got[:20].isnan().any()


def test_gradients_of_causal_attention_flow_through_the_twin(both):
    query, keys = (
        torch.randn(2, 4, 5, 8, requires_grad=True, dtype=torch.float32),
        torch.randn(2, 2, 5, 8, dtype=torch.float32),
    )
    firsts, stops = torch.tensor([0, 2]), torch.tensor([5, 4])
    causal_attention(query, keys, keys, firsts, stops, 1.0).square().sum().backward()
    assert query.grad is not None and query.grad[0, :, 1:].all()
    assert not query.grad[1, :, :2].any() and not query.grad[1, :, 4].any()  # padding


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_logits_infinities_and_nans_are_what_softmax_makes_of_them(both, dtype):
    keys, values, starts, lengths = ragged([600], 8, torch.float32, [0], 3)
    query = torch.ones(1, 1, 8, dtype=torch.float32)
    keys[500] += 300.0  # nothing else counts
    got = ragged_decode(query.to(dtype), keys.to(dtype), values.to(dtype), starts, lengths, 1.0)
    assert torch.equal(got[0, 0], values[500].to(dtype))
    keys[:300] = float("-inf")  # masked, a whole piece of them
    got = ragged_decode(query.to(dtype), keys.to(dtype), values.to(dtype), starts, lengths, 0.0001)
    half = ragged_decode(query.to(dtype), keys.to(dtype), values.to(dtype), starts + 300, lengths - 300, 0.0001)
    torch.testing.assert_close(got, half)
    keys[400, 0] = float("nan")
    assert ragged_decode(query.to(dtype), keys.to(dtype), values.to(dtype), starts, lengths, 1.0).isnan().all()


def test_empty_slabs_and_heads_give_zeros(both):
    keys, values, starts, lengths = ragged([0, 3, 0, 0], 16, torch.float32, [0, 0, 0, 0], 0)
    got = ragged_decode(torch.randn(2, 4, 16, dtype=torch.float32), keys, values, starts, lengths, 1.0)
    assert got[0, 2:].any() and not got[0, :2].any() and not got[1].any()
    keys, values, starts, lengths = ragged([0, 0], 16, torch.float32, [0, 0], 0)
    assert not ragged_decode(torch.randn(1, 4, 16, dtype=torch.float32), keys, values, starts, lengths, 1.0).any()
    nothing = torch.zeros(0, dtype=torch.int64)
    assert ragged_decode(torch.randn(0, 4, 16, dtype=torch.float32), keys, values, nothing, nothing, 1.0).shape == (
        0,
        4,
        16,
    )
    append(
        keys, values, torch.zeros(0, 16, dtype=torch.float32), torch.zeros(0, 16, dtype=torch.float32), nothing, nothing
    )
    full = torch.zeros(1, 2, 0, 16, dtype=torch.float32)
    compact(keys, values, full, full, torch.zeros(1, 2, 0, dtype=torch.bool), starts)


@pytest.mark.parametrize("op", ["ragged_decode", "append", "compact", "observe", "argmax_rows", "causal_attention"])
def test_torch_library_finds_no_fault(both, op):
    with torch.no_grad():
        torch.library.opcheck(getattr(torch.ops.sparsemm, op).default, tuple(arguments(op).values()))


def test_torch_compile_sees_one_graph(both):
    def step(query, keys, values, new, starts, lengths):
        append(keys, values, new, new, starts, lengths)
        return ragged_decode(query, keys, values, starts, lengths + 1, 0.5) * 2

    keys, values, starts, lengths = ragged([2, 3], 8, torch.float32, [1, 1], 0)
    query, new = torch.randn(1, 4, 8, dtype=torch.float32), torch.randn(2, 8, dtype=torch.float32)
    want = step(query, keys.clone(), values.clone(), new, starts, lengths)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(query, keys, values, new, starts, lengths)
    torch.testing.assert_close(got, want)
    torch._dynamo.reset()


def test_gradients_flow_through_the_twin(both):
    keys, values, starts, lengths = ragged([5, 0], 8, torch.float32, [0, 0], 0)
    query = torch.randn(1, 2, 8, requires_grad=True, dtype=torch.float32)
    ragged_decode(query, keys, values, starts, lengths, 1.0).sum().backward()
    assert query.grad is not None and query.grad[0, 0].any() and not query.grad[0, 1].any()


@pytest.mark.parametrize("dim", [4, 300])
def test_head_dimensions_and_dtypes_beyond_the_library_are_served_by_the_twin(both, dim):
    keys, values, starts, lengths = ragged([5, 2], dim, torch.float64, [0, 0], 0)
    query = torch.randn(1, 2, dim, dtype=torch.float64)
    got = ragged_decode(query, keys, values, starts, lengths, 0.1)
    torch.testing.assert_close(got[0, 1], torch.softmax(keys[5:] @ query[0, 1] * 0.1, 0) @ values[5:])
