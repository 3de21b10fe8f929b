"""Every operation of the C++ library against its PyTorch twin, and what both refuse."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemm.cache import build, library, ops, twins
from sparsemm.cache.attention import attend
from sparsemm.cache.slab import Slab
from sparsemm.errors import CacheError

DTYPES = list(library.DTYPES)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of values about 1: half an ulp and fp32
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")


@pytest.fixture(autouse=True)
def fresh_library(monkeypatch):
    monkeypatch.delenv("SPARSEMM_KERNELS", raising=False)
    library.library.cache_clear()
    yield
    library.library.cache_clear()


@pytest.fixture(params=["library", "twin"])
def both(request, monkeypatch):
    """The test runs once with the library and once without."""
    if request.param == "twin":
        monkeypatch.setenv("SPARSEMM_KERNELS", "off")
    elif not ops.available():
        pytest.skip("no C++ compiler")
    return request.param


def ragged(lengths, dim, dtype, gaps, seed):
    """A slab whose stretches have room behind them, (keys, values, starts, lengths)."""
    torch.manual_seed(seed)
    lengths = torch.tensor(lengths, dtype=torch.int64)
    ends = (lengths + torch.tensor(gaps)).cumsum(0)
    starts = ends - lengths - torch.tensor(gaps)
    total = int(ends[-1]) if len(ends) else 0
    return torch.randn(total, dim).to(dtype), torch.randn(total, dim).to(dtype), starts, lengths


@st.composite
def slabs(draw, least_gap=0):
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    size = st.one_of(st.integers(0, 9), st.sampled_from([63, 64, 65, 255, 256, 257, 700]))
    lengths = draw(st.lists(size, min_size=batch * heads, max_size=batch * heads))
    gaps = draw(st.lists(st.integers(least_gap, 3), min_size=batch * heads, max_size=batch * heads))
    dim, dtype = draw(st.sampled_from([8, 13, 32, 64, 80, 128, 256])), draw(st.sampled_from(DTYPES))
    return batch, heads, *ragged(lengths, dim, dtype, gaps, draw(st.integers(0, 999)))


@needs_compiler
def test_there_is_a_library():
    assert ops.available()


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(slabs(), st.integers(1, 7), st.floats(0.01, 2), st.sampled_from([1, 2, 5]))
def test_ragged_decode_equals_its_twin(slab, group, scaling, threads):
    batch, heads, keys, values, starts, lengths = slab
    query = torch.randn(batch, heads * group, keys.shape[1]).to(keys.dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = ops.ragged_decode(query, keys, values, starts, lengths, scaling)
    finally:
        torch.set_num_threads(before)
    assert got.dtype == query.dtype and got.shape == query.shape
    want = twins.ragged_decode(query.double(), keys.double(), values.double(), starts, lengths, scaling)
    tolerance = TOLERANCE[keys.dtype] * (1 + scaling * keys.shape[1] ** 0.5)  # logits round before the softmax does
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@needs_compiler
@settings(max_examples=100, deadline=None)
@given(slabs(least_gap=1))
def test_append_equals_its_twin(slab):
    _, _, keys, values, starts, lengths = slab
    new_keys, new_values = (torch.randn(len(starts), keys.shape[1]).to(keys.dtype) for _ in range(2))
    twin = keys.clone(), values.clone()
    twins.append(*twin, new_keys, new_values, starts, lengths)
    ops.append(keys, values, new_keys, new_values, starts, lengths)
    assert torch.equal(keys, twin[0]) and torch.equal(values, twin[1])


@needs_compiler
@settings(max_examples=100, deadline=None)
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
    full = [torch.randn(batch, heads, length, dim).to(dtype) for _ in range(2)]
    if layout == "transposed":
        full = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in full]
    elif layout == "sliced":
        full = [torch.cat([t, t], -1)[..., :dim] for t in full]
    keep = torch.rand(batch, heads, length) < share
    room = keep.flatten(0, 1).sum(-1) + torch.randint(0, 3, (batch * heads,))
    starts = room.cumsum(0) - room
    buffers = [torch.zeros(int(room.sum()), dim, dtype=dtype) for _ in range(4)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ops.compact(*buffers[:2], *full, keep, starts)
    finally:
        torch.set_num_threads(before)
    twins.compact(*buffers[2:], *full, keep, starts)
    assert torch.equal(buffers[0], buffers[2]) and torch.equal(buffers[1], buffers[3])


@needs_compiler
@settings(max_examples=100, deadline=None)
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
    query = torch.randn(batch, window, heads * group, dim).to(dtype).transpose(1, 2)
    keys = torch.randn(batch, length, heads, dim).to(dtype).transpose(1, 2)
    valid = torch.ones(batch, length, dtype=torch.bool)
    if padding == "left":
        valid = torch.arange(length) >= torch.randint(0, length, (batch, 1))
    elif padding == "anywhere":
        valid = torch.rand(batch, length) < 0.6
    before_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = ops.observe(query, keys, valid, pooling, 0.3)
    finally:
        torch.set_num_threads(before_threads)
    want = twins.observe(query, keys, valid, pooling, 0.3)
    assert got.dtype == torch.float32 and got.is_contiguous()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@needs_compiler
@settings(max_examples=100, deadline=None)
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
    query = torch.randn(rows, heads * group, dim, generator=generator).to(dtype).transpose(0, 1)
    keys = torch.randn(heads, length, dim, generator=generator).to(dtype)
    if ties:  # small whole numbers: sums are exact in any order, and many are equal
        query, keys = (torch.randint(-1, 2, t.shape, generator=generator).to(dtype) for t in (query, keys))
    begins = torch.randint(0, length + 1, (rows,), generator=generator)
    ends = torch.randint(0, length + 1, (rows,), generator=generator)  # some see nothing
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = ops.argmax_rows(query, keys, begins, ends)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got, twins.argmax_rows(query, keys, begins, ends))


def test_observe_and_argmax_rows_with_nothing_to_do(both):
    query, keys = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 3, 8)
    real = torch.ones(2, 3, dtype=torch.bool)
    assert torch.isneginf(ops.observe(query, keys, real, 5, 1.0)).all()  # all window
    assert ops.observe(query[:, :, :0], keys, real, 5, 1.0).shape == (2, 2, 3)
    assert ops.observe(query[:0], keys[:0], real[:0], 5, 1.0).shape == (0, 2, 3)
    none = torch.zeros(0, dtype=torch.int64)
    assert ops.argmax_rows(query[0, :, :0], keys[0], none, none).shape == (4, 0)
    zero, one = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    assert not ops.argmax_rows(query[0], keys[0, :, :0], zero, zero).any()
    assert not ops.argmax_rows(query[0], keys[0], zero, one).any()


def test_infinities_and_nans_of_observe_and_argmax_rows(both):
    query, keys = torch.ones(1, 2, 2, 8), torch.rand(1, 1, 70, 8)
    real = torch.ones(1, 70, dtype=torch.bool)
    keys[0, 0, 5] = float("inf")
    keys[0, 0, 7] = float("-inf")
    assert ops.argmax_rows(query[0], keys[0], torch.tensor([0, 7]), torch.tensor([70, 8])).tolist() == [[5, 0]] * 2
    assert not ops.observe(query, keys, real, 3, 1.0)[..., :68].any()  # softmax of an infinity is NaN: counts as 0
    keys[0, 0, 66, 3] = float("nan")
    assert ops.argmax_rows(query[0], keys[0], torch.tensor([0, 0]), torch.tensor([70, 66])).tolist() == [[66, 5]] * 2


@needs_compiler
def test_the_result_does_not_depend_on_the_number_of_threads():
    keys, values, starts, lengths = ragged([3000, 40, 0, 700], 64, torch.float32, [0] * 4, 1)
    query = torch.randn(2, 6, 64)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        results.append(ops.ragged_decode(query, keys, values, starts, lengths, 0.1))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_logits_infinities_and_nans_are_what_softmax_makes_of_them(both, dtype):
    keys, values, starts, lengths = ragged([600], 8, torch.float32, [0], 3)
    query = torch.ones(1, 1, 8)
    keys[500] += 300.0  # nothing else counts
    got = ops.ragged_decode(query.to(dtype), keys.to(dtype), values.to(dtype), starts, lengths, 1.0)
    assert torch.equal(got[0, 0], values[500].to(dtype))
    keys[:300] = float("-inf")  # masked, a whole piece of them
    got = ops.ragged_decode(query.to(dtype), keys.to(dtype), values.to(dtype), starts, lengths, 0.0001)
    half = ops.ragged_decode(query.to(dtype), keys.to(dtype), values.to(dtype), starts + 300, lengths - 300, 0.0001)
    torch.testing.assert_close(got, half)
    keys[400, 0] = float("nan")
    assert ops.ragged_decode(query.to(dtype), keys.to(dtype), values.to(dtype), starts, lengths, 1.0).isnan().all()


def test_empty_slabs_and_heads_give_zeros(both):
    keys, values, starts, lengths = ragged([0, 3, 0, 0], 16, torch.float32, [0, 0, 0, 0], 0)
    got = ops.ragged_decode(torch.randn(2, 4, 16), keys, values, starts, lengths, 1.0)
    assert got[0, 2:].any() and not got[0, :2].any() and not got[1].any()
    keys, values, starts, lengths = ragged([0, 0], 16, torch.float32, [0, 0], 0)
    assert not ops.ragged_decode(torch.randn(1, 4, 16), keys, values, starts, lengths, 1.0).any()
    nothing = torch.zeros(0, dtype=torch.int64)
    assert ops.ragged_decode(torch.randn(0, 4, 16), keys, values, nothing, nothing, 1.0).shape == (0, 4, 16)
    ops.append(keys, values, torch.zeros(0, 16), torch.zeros(0, 16), nothing, nothing)
    full = torch.zeros(1, 2, 0, 16)
    ops.compact(keys, values, full, full, torch.zeros(1, 2, 0, dtype=torch.bool), starts)


DECODE = ["query", "keys", "values", "starts", "lengths", "scaling"]
APPEND = ["keys", "values", "new_keys", "new_values", "starts", "lengths"]
COMPACT = ["keys", "values", "full_keys", "full_values", "keep", "starts"]


OBSERVE = ["query", "keys", "valid", "pooling", "scaling"]
ARGMAX = ["query", "keys", "begins", "ends"]


def arguments(op):
    torch.manual_seed(0)
    if op == "observe":
        query, keys, valid = torch.randn(2, 4, 2, 8), torch.randn(2, 2, 9, 8), torch.ones(2, 9, dtype=torch.bool)
        return dict(zip(OBSERVE, [query, keys, valid, 3, 0.5], strict=True))
    if op == "argmax_rows":
        ends = torch.tensor([2, 5, 9])
        return dict(zip(ARGMAX, [torch.randn(4, 3, 8), torch.randn(2, 9, 8), ends - 2, ends], strict=True))
    keys, values, starts, lengths = ragged([2, 3, 1, 4], 8, torch.float32, [1] * 4, 0)
    if op == "ragged_decode":
        return dict(zip(DECODE, [torch.randn(2, 4, 8), keys, values, starts, lengths, 1.0], strict=True))
    if op == "append":
        new = torch.randn(2, 4, 8)
        return dict(zip(APPEND, [keys, values, new[0], new[1], starts, lengths], strict=True))
    full, keep = torch.randn(2, 2, 3, 8), torch.ones(2, 2, 3, dtype=torch.bool)
    keep[1] = False
    return dict(zip(COMPACT, [keys, values, full, full, keep, starts], strict=True))


def changed(what, change):
    return lambda a: a.__setitem__(what, change(a[what]))


def at(what, index, value):
    return lambda a: a[what].__setitem__(index, value)


def strided(t):
    return torch.stack([t, t], -1)[..., 0]


BAD = [
    ("ragged_decode", changed("query", torch.Tensor.half), "dtypes"),
    ("ragged_decode", changed("keys", torch.Tensor.int), "dtypes"),
    ("ragged_decode", changed("query", strided), "contiguous"),
    ("ragged_decode", changed("keys", strided), "contiguous"),
    ("ragged_decode", changed("query", lambda t: t[..., :7].contiguous()), "head dimension"),
    ("ragged_decode", changed("query", lambda t: t[0]), "is not"),
    ("ragged_decode", changed("query", lambda t: t[:, :3].contiguous()), "do not serve"),
    ("ragged_decode", changed("query", lambda t: t[:0]), "do not serve"),
    ("ragged_decode", changed("values", lambda t: t[1:]), r"\(rows, D\)"),
    ("ragged_decode", changed("query", lambda t: t.to("meta")), "devices"),
    ("ragged_decode", changed("starts", torch.Tensor.int), "int64"),
    ("ragged_decode", changed("lengths", lambda t: t[:3]), "int64"),
    ("ragged_decode", changed("lengths", lambda t: strided(t)), "contiguous"),
    ("ragged_decode", at("starts", 1, -1), "stretch 1: its start or length leaves"),
    ("ragged_decode", at("lengths", 2, -1), "stretch 2: its start or length leaves"),
    ("ragged_decode", at("lengths", 3, 6), "stretch 3: its start or length leaves"),
    ("ragged_decode", at("starts", 0, 2**63 - 1), "stretch 0: its start or length leaves"),
    ("ragged_decode", at("lengths", 0, 2**63 - 1), "stretch 0: its start or length leaves"),
    ("append", changed("new_keys", torch.Tensor.double), "dtypes"),
    ("append", changed("new_values", lambda t: t[:3]), "new rows"),
    ("append", changed("new_values", strided), "new rows"),
    ("append", at("lengths", 1, 4), "stretch 1: it has no room"),
    ("append", at("lengths", 3, 5), "stretch 3: it has no room"),
    ("append", at("lengths", 0, -1), "stretch 0: it has no room"),
    ("append", at("starts", 0, -1), "stretch 0: it has no room"),
    ("append", at("starts", 3, 99), "stretch 2: it has no room"),
    ("append", at("starts", 0, 2**63 - 1), "stretch 0: it has no room"),
    ("compact", changed("full_keys", torch.Tensor.bfloat16), "dtypes"),
    ("compact", changed("full_values", lambda t: t[:, :1]), "do not fit"),
    ("compact", changed("keep", lambda t: t[..., :2]), "do not fit"),
    ("compact", changed("keep", torch.Tensor.byte), "keep is not bool"),
    ("compact", changed("keep", strided), "keep is not bool"),
    ("compact", changed("full_keys", strided), "last dimension"),
    ("compact", changed("starts", lambda t: t[:3]), "stretches for"),
    ("compact", at("keep", (1, 0), True), "stretch 2: what it keeps does not fit"),
    ("compact", at("starts", 0, -1), "stretch 0: what it keeps does not fit"),
    ("compact", at("starts", 3, 99), "stretch 2: what it keeps does not fit|stretch 3: what it keeps does not fit"),
    ("observe", changed("query", torch.Tensor.half), "dtypes"),
    ("observe", changed("keys", torch.Tensor.long), "dtypes"),
    ("observe", changed("query", lambda t: t[..., :7]), "do not end with"),
    ("observe", changed("query", lambda t: t[:, :3]), "3 query heads for 2"),
    ("observe", changed("keys", lambda t: t[:, :0]), "4 query heads for 0"),
    ("observe", changed("query", lambda t: t[:1]), "is not the last rows"),
    ("observe", changed("keys", lambda t: t[:, :, :1]), "is not the last rows"),
    ("observe", changed("query", lambda t: t.to("meta")), "devices"),
    ("observe", changed("valid", lambda t: t[:, :8]), "valid is"),
    ("observe", changed("valid", torch.Tensor.byte), "valid is"),
    ("observe", changed("pooling", lambda _: 4), "pooling is 4"),
    ("observe", changed("pooling", lambda _: -1), "pooling is -1"),
    ("argmax_rows", changed("keys", torch.Tensor.double), "dtypes"),
    ("argmax_rows", changed("query", lambda t: t[:3]), "3 query heads for 2"),
    ("argmax_rows", changed("query", lambda t: t[0]), "do not end with"),
    ("argmax_rows", changed("keys", lambda t: t[None]), "are not"),
    ("argmax_rows", changed("begins", torch.Tensor.int), "int64"),
    ("argmax_rows", changed("ends", lambda t: t[:2]), "int64"),
    ("argmax_rows", at("begins", 1, -1), "row 1: it sees beyond 9 keys"),
    ("argmax_rows", at("ends", 2, 10), "row 2: it sees beyond 9 keys"),
]


@pytest.mark.parametrize(("op", "damage", "match"), BAD)
@pytest.mark.parametrize("direct", [False, True])
def test_what_does_not_fit_is_refused_and_nothing_is_written(both, op, damage, match, direct):
    given = arguments(op)
    damage(given)
    before = {name: given[name].clone() for name in ("keys", "values") if name in given and not given[name].is_meta}
    call = getattr(torch.ops.sparsemm if direct else ops, op)
    with pytest.raises(CacheError, match=match):
        call(**given)
    assert all(torch.equal(given[name], was) for name, was in before.items())


@pytest.mark.parametrize("op", ["ragged_decode", "append", "compact", "observe", "argmax_rows"])
def test_torch_library_finds_no_fault(both, op):
    with torch.no_grad():
        torch.library.opcheck(getattr(torch.ops.sparsemm, op).default, tuple(arguments(op).values()))


def test_torch_compile_sees_one_graph(both):
    def step(query, keys, values, new, starts, lengths):
        ops.append(keys, values, new, new, starts, lengths)
        return ops.ragged_decode(query, keys, values, starts, lengths + 1, 0.5) * 2

    keys, values, starts, lengths = ragged([2, 3], 8, torch.float32, [1, 1], 0)
    query, new = torch.randn(1, 4, 8), torch.randn(2, 8)
    want = step(query, keys.clone(), values.clone(), new, starts, lengths)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(query, keys, values, new, starts, lengths)
    torch.testing.assert_close(got, want)
    torch._dynamo.reset()


def test_gradients_flow_through_the_twin(both):
    keys, values, starts, lengths = ragged([5, 0], 8, torch.float32, [0, 0], 0)
    query = torch.randn(1, 2, 8, requires_grad=True)
    ops.ragged_decode(query, keys, values, starts, lengths, 1.0).sum().backward()
    assert query.grad is not None and query.grad[0, 0].any() and not query.grad[0, 1].any()


@pytest.mark.parametrize("dim", [4, 300])
def test_head_dimensions_and_dtypes_beyond_the_library_are_served_by_the_twin(both, dim):
    keys, values, starts, lengths = ragged([5, 2], dim, torch.float64, [0, 0], 0)
    query = torch.randn(1, 2, dim, dtype=torch.float64)
    got = ops.ragged_decode(query, keys, values, starts, lengths, 0.1)
    torch.testing.assert_close(got[0, 1], torch.softmax(keys[5:] @ query[0, 1] * 0.1, 0) @ values[5:])


# The slab and its attention.


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_slab_decodes_with_the_library_as_with_the_twin(dtype, monkeypatch):
    def steps():
        torch.manual_seed(0)
        keys = torch.randn(2, 50, 3, 16).to(dtype).transpose(1, 2)
        slab, outputs = Slab(keys, keys + 1, torch.rand(2, 3, 50) < 0.4, slack=2), []
        for step in range(5):
            new = torch.randn(2, 1, 3, 16).to(dtype).transpose(1, 2)
            valid = [None, torch.tensor([[True], [True]]), torch.tensor([[True], [False]])][step % 3]
            slab.append(new, new, valid)
            outputs.append(attend(torch.randn(2, 6, 1, 16).to(dtype), slab, 0.3, valid))
        return slab, torch.stack(outputs)

    calls = []
    monkeypatch.setattr(ops, "ragged_decode", lambda *a, f=ops.ragged_decode: calls.append(1) or f(*a))
    ours, got = steps()
    assert len(calls) == 5
    monkeypatch.setenv("SPARSEMM_KERNELS", "off")
    library.library.cache_clear()
    twin, want = steps()
    assert len(calls) == 5
    torch.testing.assert_close(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(ours.keys, twin.keys) and torch.equal(ours.values, twin.values)
    assert torch.equal(ours.lengths, twin.lengths) and (ours.longest, ours.slack) == (twin.longest, twin.slack)


# Building.


def test_without_a_compiler_one_line_says_so_and_the_twin_serves(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert not ops.available() and not ops.available()
    assert [r.getMessage().count("\n") for r in caplog.records] == [0]
    assert "PyTorch serves" in caplog.text and "no-such-compiler was not found" in caplog.text
    keys, values, starts, lengths = ragged([2], 8, torch.float32, [0], 0)
    assert not ops.serves(keys)
    assert ops.ragged_decode(torch.randn(1, 1, 8), keys, values, starts, lengths, 1.0).any()


def test_switched_off_it_says_nothing(monkeypatch, caplog):
    monkeypatch.setenv("SPARSEMM_KERNELS", "off")
    assert not ops.available() and not caplog.records


def test_a_compiler_that_fails_and_a_damaged_library_are_reported(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    assert not ops.available() and "fails" in caplog.text
    assert not list(tmp_path.rglob("*.so"))
    library.library.cache_clear()
    (tmp_path / "damaged.so").write_bytes(b"nothing")
    monkeypatch.setattr(build, "build", lambda: tmp_path / "damaged.so")
    assert not ops.available() and "damaged.so" in caplog.text


def test_a_folder_that_cannot_be_written_is_reported(monkeypatch, caplog, tmp_path):
    (tmp_path / "sparsemm").write_text("a file in its place")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not ops.available()
    assert len(caplog.records) == 1


@needs_compiler
def test_built_once_and_again_when_a_source_changes(monkeypatch, tmp_path):
    sources = shutil.copytree(build.source_folder(), tmp_path / "csrc")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "source_folder", lambda: sources)
    monkeypatch.setattr(build, "COMMON", [flag for flag in build.COMMON if flag != "-O3"])
    first = build.build()
    made = first.stat().st_mtime_ns
    assert build.build() == first and first.stat().st_mtime_ns == made
    (sources / "append.cpp").write_text((sources / "append.cpp").read_text() + "// changed\n")
    assert build.build() != first
    assert sorted(p.suffix for p in (tmp_path / "sparsemm").iterdir()) == [".so", ".so"]  # nothing half-made


@needs_compiler
@pytest.mark.parametrize("flags", list(build.flag_sets())[1:], ids=" ".join)
def test_the_plainer_flags_compute_the_same(tmp_path, flags):
    """Narrower vectors, and at last no OpenMP: what an old compiler or another architecture gets."""
    assert build.compile_library(build.compiler(), [*build.COMMON, *flags, "-O1"], tmp_path / "plain.so") == ""
    plain = ctypes.CDLL(str(tmp_path / "plain.so")).sparsemm_ragged_decode
    plain.argtypes, plain.restype = library.ARGUMENTS["sparsemm_ragged_decode"], ctypes.c_int64
    for dtype in DTYPES:
        keys, values, starts, lengths = ragged([300, 0, 5], 24, dtype, [0] * 3, 0)
        values[:20] *= 1e-6  # subnormal halves
        query = torch.randn(1, 6, 24).to(dtype)
        out = torch.empty_like(query)
        tensors = [t.data_ptr() for t in (query, keys, values, starts, lengths, out)]
        assert plain(library.DTYPES[dtype], *tensors, 3, 2, 24, len(keys), 0.2, 4) == library.DONE
        want = twins.ragged_decode(query.double(), keys.double(), values.double(), starts, lengths, 0.2)
        torch.testing.assert_close(out.double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@needs_compiler
def test_halves_are_rounded_as_torch_rounds_them():
    """One row comes back as it is: conversion there and back, of every half and of floats between them."""
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(-1, 256)
        stretches = len(every)
        starts, lengths = torch.arange(stretches), torch.ones(stretches, dtype=torch.int64)
        query = torch.zeros(1, stretches, 256, dtype=dtype)
        got = ops.ragged_decode(query, torch.zeros_like(every), every, starts, lengths, 1.0)[0]
        assert torch.equal(got.nan_to_num(7.0), every.nan_to_num(7.0))
        assert torch.equal(got.isnan(), every.isnan())
        # The mean of two rows lies between halves and rounds to even.
        pairs = torch.stack([every, every.view(-1).roll(1).view(-1, 256)], 1).view(-1, 256)
        got = ops.ragged_decode(query, torch.zeros_like(pairs), pairs, 2 * starts, 2 * lengths, 1.0)[0]
        want = ((pairs[0::2].float() + pairs[1::2].float()) * 0.5).to(dtype)
        assert torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0))


@needs_compiler
def test_one_command_builds_the_library():
    done = subprocess.run(
        [sys.executable, "-m", "sparsemm.cache.build"], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.strip() == str(build.build())
