"""Every operation of the C++ library against its reference implementation in PyTorch."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemm.cache import tiles
from sparsemm.cache.attention import attend
from sparsemm.cache.slab import Slab
from sparsemm.ops import append, argmax_rows, causal_attention, compact, library, observe, ragged_decode
from tests.ops.operations import DTYPES, TOLERANCE, needs_compiler, ragged

pytestmark = pytest.mark.usefixtures("fresh_library")


@st.composite
def slabs(draw, least_gap=0):
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    size = st.one_of(st.integers(0, 9), st.sampled_from([63, 64, 65, 511, 512, 513, 1100]))
    lengths = draw(st.lists(size, min_size=batch * heads, max_size=batch * heads))
    gaps = draw(st.lists(st.integers(least_gap, 3), min_size=batch * heads, max_size=batch * heads))
    dim, dtype = draw(st.sampled_from([8, 13, 32, 64, 80, 128, 256])), draw(st.sampled_from(DTYPES))
    return batch, heads, *ragged(lengths, dim, dtype, gaps, draw(st.integers(0, 999)))


@needs_compiler
@settings(max_examples=75)
@given(slabs(), st.integers(1, 7), st.floats(0.01, 2), st.sampled_from([1, 2, 5]))
def test_ragged_decode_equals_its_twin(slab, group, scaling, threads):
    batch, heads, keys, values, starts, lengths = slab
    query = torch.randn(batch, heads * group, keys.shape[1], dtype=torch.float32).to(keys.dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = ragged_decode.ragged_decode(query, keys, values, starts, lengths, scaling)
    finally:
        torch.set_num_threads(before)
    assert got.dtype == query.dtype and got.shape == query.shape
    want = ragged_decode.reference(query.double(), keys.double(), values.double(), starts, lengths, scaling)
    tolerance = TOLERANCE[keys.dtype] * (1 + scaling * keys.shape[1] ** 0.5)  # logits round before the softmax does
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@needs_compiler
@settings(max_examples=50)
@given(slabs(least_gap=1))
def test_append_equals_its_twin(slab):
    _, _, keys, values, starts, lengths = slab
    new_keys, new_values = (
        torch.randn(len(starts), keys.shape[1], dtype=torch.float32).to(keys.dtype) for _ in range(2)
    )
    twin = keys.clone(), values.clone()
    append.reference(*twin, new_keys, new_values, starts, lengths)
    append.append(keys, values, new_keys, new_values, starts, lengths)
    assert torch.equal(keys, twin[0]) and torch.equal(values, twin[1])


@needs_compiler
@settings(max_examples=50)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([0, 1, 7, 1023, 1024, 1025, 2500]),
    st.sampled_from([8, 13, 128]),
    st.sampled_from(DTYPES),
    st.floats(0, 1),
    st.sampled_from(["plain", "transposed", "sliced"]),
    st.sampled_from([1, 3]),
)
def test_compact_equals_its_twin(batch, heads, length, dim, dtype, share, layout, threads):
    full = [torch.randn(batch, heads, length, dim, dtype=torch.float32).to(dtype) for _ in range(2)]
    if layout == "transposed":
        full = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in full]
    elif layout == "sliced":
        full = [torch.cat([t, t], -1)[..., :dim] for t in full]
    keep = torch.rand(batch, heads, length, dtype=torch.float32) < share
    room = keep.flatten(0, 1).sum(-1) + torch.randint(0, 3, (batch * heads,))
    starts = room.cumsum(0) - room
    buffers = [torch.zeros(int(room.sum()), dim, dtype=dtype) for _ in range(4)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compact.compact(*buffers[:2], *full, keep, starts)
    finally:
        torch.set_num_threads(before)
    compact.reference(*buffers[2:], *full, keep, starts)
    assert torch.equal(buffers[0], buffers[2]) and torch.equal(buffers[1], buffers[3])


@needs_compiler
@settings(max_examples=50)
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 7),
    st.sampled_from([1, 2, 5, 8, 33]),
    st.sampled_from([0, 1, 40, 63, 64, 65, 300]),
    st.sampled_from([8, 13, 32, 80]),
    st.sampled_from(DTYPES),
    st.sampled_from([1, 3, 5, 99]),
    st.sampled_from(["none", "left", "anywhere"]),
    st.sampled_from([1, 3]),
)
def test_observe_equals_its_twin(batch, heads, group, window, before, dim, dtype, pooling, padding, threads):
    length = before + window
    query = torch.randn(batch, window, heads * group, dim, dtype=torch.float32).to(dtype).transpose(1, 2)
    keys = torch.randn(batch, length, heads, dim, dtype=torch.float32).to(dtype).transpose(1, 2)
    valid = torch.ones(batch, length, dtype=torch.bool)
    if padding == "left":
        valid = torch.arange(length) >= torch.randint(0, length, (batch, 1))
    elif padding == "anywhere":
        valid = torch.rand(batch, length, dtype=torch.float32) < 0.6
    before_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = observe.observe(query, keys, valid, pooling, 0.3)
    finally:
        torch.set_num_threads(before_threads)
    want = observe.reference(query, keys, valid, pooling, 0.3)
    assert got.dtype == torch.float32 and got.is_contiguous()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@needs_compiler
@settings(max_examples=50)
@given(
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(0, 20),
    st.sampled_from([1, 2, 5, 64, 301]),
    st.sampled_from([8, 13, 32, 128]),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.sampled_from([1, 3]),
    st.integers(0, 999),
)
def test_argmax_rows_equals_its_twin(heads, group, rows, length, dim, dtype, ties, threads, seed):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(rows, heads * group, dim, generator=generator, dtype=torch.float32).to(dtype).transpose(0, 1)
    keys = torch.randn(heads, length, dim, generator=generator, dtype=torch.float32).to(dtype)
    if ties:  # small whole numbers: sums are exact in any order, and many are equal
        query, keys = (torch.randint(-1, 2, t.shape, generator=generator).to(dtype) for t in (query, keys))
    begins = torch.randint(0, length + 1, (rows,), generator=generator)
    ends = torch.randint(0, length + 1, (rows,), generator=generator)  # some see nothing
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = argmax_rows.argmax_rows(query, keys, begins, ends)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got, argmax_rows.reference(query, keys, begins, ends))


@needs_compiler
@settings(max_examples=50)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 7),
    st.sampled_from([1, 2, 7, 8, 9, 17, 130]),
    st.sampled_from([8, 12, 13, 16, 24, 64, 200]),
    st.sampled_from(DTYPES),
    st.sampled_from([1, 3]),
    st.integers(0, 999),
)
def test_causal_attention_equals_its_twin(batch, heads, group, length, dim, dtype, threads, seed):
    generator = torch.Generator().manual_seed(seed)
    query = (
        torch.randn(batch, length, heads * group, dim, generator=generator, dtype=torch.float32)
        .to(dtype)
        .transpose(1, 2)
    )
    keys, values = (
        torch.randn(batch, heads, length, dim, generator=generator, dtype=torch.float32).to(dtype) for _ in range(2)
    )
    ends = torch.randint(0, length + 1, (2, batch), generator=generator).sort(dim=0).values
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = causal_attention.causal_attention(query, keys, values, *ends, dim**-0.5)
    finally:
        torch.set_num_threads(before)
    want = causal_attention.reference(query.double(), keys.double(), values.double(), *ends, dim**-0.5)
    assert got.dtype == dtype and got.is_contiguous()
    tolerance = 2 * TOLERANCE[dtype]
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@needs_compiler
def test_the_result_does_not_depend_on_the_number_of_threads():
    keys, values, starts, lengths = ragged([3000, 40, 0, 700], 64, torch.float32, [0] * 4, 1)
    query = torch.randn(2, 6, 64, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        results.append(ragged_decode.ragged_decode(query, keys, values, starts, lengths, 0.1))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@needs_compiler
def test_halves_are_rounded_as_torch_rounds_them():
    """One row comes back as it is: conversion there and back, of every half and of floats between them."""
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(-1, 256)
        segments = len(every)
        starts, lengths = torch.arange(segments), torch.ones(segments, dtype=torch.int64)
        query = torch.zeros(1, segments, 256, dtype=dtype)
        got = ragged_decode.ragged_decode(query, torch.zeros_like(every), every, starts, lengths, 1.0)[0]
        assert torch.equal(got.nan_to_num(7.0), every.nan_to_num(7.0))
        assert torch.equal(got.isnan(), every.isnan())
        # The mean of two rows lies between halves and rounds to even.
        pairs = torch.stack([every, every.view(-1).roll(1).view(-1, 256)], 1).view(-1, 256)
        got = ragged_decode.ragged_decode(query, torch.zeros_like(pairs), pairs, 2 * starts, 2 * lengths, 1.0)[0]
        want = ((pairs[0::2].float() + pairs[1::2].float()) * 0.5).to(dtype)
        assert torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0))


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_slab_decodes_with_the_library_as_with_the_twin(dtype, monkeypatch):
    def steps():
        torch.manual_seed(0)
        keys = torch.randn(2, 50, 3, 16, dtype=torch.float32).to(dtype).transpose(1, 2)
        slab, outputs = Slab(keys, keys + 1, torch.rand(2, 3, 50, dtype=torch.float32) < 0.4, slack=2), []
        for step in range(5):
            new = torch.randn(2, 1, 3, 16, dtype=torch.float32).to(dtype).transpose(1, 2)
            valid = [None, torch.tensor([[True], [True]]), torch.tensor([[True], [False]])][step % 3]
            slab.append(new, new, valid)
            outputs.append(attend(torch.randn(2, 6, 1, 16, dtype=torch.float32).to(dtype), slab, 0.3, valid))
        return slab, torch.stack(outputs)

    calls = []
    monkeypatch.setattr(tiles, "ragged_decode", lambda *a, f=tiles.ragged_decode: calls.append(1) or f(*a))
    ours, got = steps()
    assert len(calls) == 5
    monkeypatch.setenv("SPARSEMM_KERNELS", "off")
    library.library.cache_clear()
    twin, want = steps()
    assert len(calls) == 5
    torch.testing.assert_close(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(ours.keys, twin.keys) and torch.equal(ours.values, twin.values)
    assert torch.equal(ours.lengths, twin.lengths) and (ours.longest, ours.slack) == (twin.longest, twin.slack)


def drawn(rng, dtype):
    """Arguments of every operation for one random ragged shape."""
    batch, heads, group, dim = (
        rng.integers(1, 4),
        rng.integers(1, 5),
        rng.integers(1, 9),
        rng.choice([8, 13, 40, 64, 96]),
    )
    segments = batch * heads
    lengths, gaps = (rng.choice([0, 1, 2, 63, 64, 130], segments).tolist(), rng.integers(1, 4, segments).tolist())
    keys, values, starts, held = ragged(lengths, dim, dtype, gaps, int(rng.integers(1 << 30)))
    new = torch.randn(2, segments, dim, dtype=torch.float32).to(dtype)
    length, rows = int(rng.integers(1, 140)), int(rng.integers(0, 7))
    full = torch.randn(2, batch, length, heads, dim, dtype=torch.float32).to(dtype).transpose(2, 3)
    room = torch.cat([starts[1:], starts.new_full((1,), len(keys))]) - starts
    keep = (torch.rand(batch, heads, length, dtype=torch.float32) < rng.random()) & (
        torch.arange(length) < room.view(batch, heads, 1)
    )
    valid = torch.arange(length) >= torch.randint(0, length, (batch, 1))
    window = int(rng.integers(1, min(length, 9) + 1))
    query = torch.randn(batch, heads * group, window + rows, dim, dtype=torch.float32).to(dtype)
    begins, ends = torch.randint(0, length + 1, (2, rows))
    scaling = float(rng.choice([0.1, dim**-0.5]))
    return {
        "ragged_decode": [query[:, :, 0].contiguous(), keys, values, starts, held, scaling],
        "append": [keys.clone(), values.clone(), *new, starts, held],
        "compact": [keys.clone(), values.clone(), *full, keep, starts],
        "observe": [query[:, :, :window], full[0], valid, int(rng.choice([1, 3, 5])), scaling],
        "argmax_rows": [query[0, :, window:], full[0, 0], begins, ends],
    }


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_thousands_of_random_ragged_shapes(dtype):
    rng = np.random.default_rng(DTYPES.index(dtype))
    for _ in range(200):
        for op, arguments in drawn(rng, dtype).items():
            mine, other = ([a.clone() if isinstance(a, torch.Tensor) else a for a in arguments] for _ in range(2))
            module = import_module(f"sparsemm.ops.{op}")
            got, want = getattr(module, op)(*mine), module.reference(*other)
            loose = op in ("ragged_decode", "observe")  # the others move and compare
            tolerance = 4 * TOLERANCE[dtype] if loose else 0.0
            for one, two in [(got, want), *zip(mine[:2], other[:2], strict=True)]:
                if one is not None:
                    torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance, equal_nan=True, msg=op)
