"""The CUDA kernels, compiled for the processor and run thread by thread (cuda_stand_in/kernels.h), against the twins.

Whether they are fast, and what a real GPU makes of them, only a GPU tells: `python -m benchmarks.gpu_check`.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sparsemm.errors import CacheError
from sparsemm.ops import append, argmax_rows, build, compact, library, observe, ragged_decode

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
THREADS = Path(__file__).parents[1] / "cuda_stand_in" / "kernels.h"
# Hidden, as in production: the loader would give what is visible in two libraries to both, the first one's.
EMULATED = ["-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-fvisibility=hidden", "-x", "c++", "-include", str(THREADS)]
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
needs_nvcc = pytest.mark.skipif(
    not (shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()), reason="no nvcc: CUDA sources not compiled"
)


@pytest.fixture(autouse=True)
def with_libraries(monkeypatch):
    """These tests are about the compiled code, so they run with it also where the rest of a run goes without."""
    monkeypatch.delenv("SPARSEMM_KERNELS", raising=False)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory) -> library.ctypes.CDLL:
    target = tmp_path_factory.mktemp("emulation") / "cuda.so"
    flags = EMULATED + os.environ.get("EMULATION_FLAGS", "").split()
    assert build.compile_library(build.compiler(), flags, target, "*.cu") == ""
    return library.load(str(target), library.CUDA_ARGUMENTS)


@pytest.fixture
def device(emulated, monkeypatch) -> Iterator[None]:
    """The calls of the CUDA library reach the emulated kernels, with tensors of the processor."""
    word = torch.zeros(2, dtype=torch.int64)
    fault = word, (library.ctypes.c_int64 * 2).from_address(word.data_ptr())
    monkeypatch.setattr(library, "cuda_library", lambda: emulated)
    monkeypatch.setattr(library, "fault_word", lambda: fault)
    monkeypatch.setattr(library, "CUDA", "cpu")
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    ragged_decode._COUNTERS.clear()
    yield
    assert not any(held.any() for held in ragged_decode._COUNTERS.values()), "a kernel left its counters changed"
    ragged_decode._COUNTERS.clear()


def rounds(count: int) -> range:
    """EMULATION_ROUNDS times as many: fewer where every access is looked at, many for a thorough run."""
    return range(math.ceil(count * float(os.environ.get("EMULATION_ROUNDS", "1"))))


def pick(generator: torch.Generator, *choices):
    return choices[int(torch.randint(len(choices), (1,), generator=generator))]


def random_slab(generator, dtype, dim, least_gap=0):
    segments = pick(generator, 1, 2, 3, 8, 40)
    size = pick(generator, 3, 70, 300)
    lengths = torch.randint(0, size, (segments,), generator=generator)
    lengths[torch.randint(segments, (1,), generator=generator)] *= pick(generator, 0, 1, 9)
    gaps = torch.randint(least_gap, 4, (segments,), generator=generator)
    starts = (lengths + gaps).cumsum(0) - lengths - gaps
    rows = int((lengths + gaps).sum())
    keys, values = (torch.randn(rows, dim, generator=generator, dtype=torch.float32).to(dtype) for _ in range(2))
    return keys, values, starts, lengths


@needs_compiler
@pytest.mark.parametrize("dtype", list(library.DTYPES), ids=str)
def test_ragged_decode(device, dtype):
    generator = torch.Generator().manual_seed(1)
    for _ in rounds(12):
        dim, group = pick(generator, 8, 32, 40, 64, 80, 128, 192, 256), pick(generator, 1, 2, 4, 7, 8, 9, 17)
        keys, values, starts, lengths = random_slab(generator, dtype, dim)
        query = torch.randn(1, len(starts) * group, dim, generator=generator, dtype=torch.float32).to(dtype)
        scaling = pick(generator, 0.05, 1.0)
        got = ragged_decode.on_cuda(query, keys, values, starts, lengths, scaling)
        want = ragged_decode.reference(query.double(), keys.double(), values.double(), starts, lengths, scaling)
        tolerance = TOLERANCE[dtype] * (1 + scaling * dim**0.5)
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@needs_compiler
def test_a_long_head_is_shared_by_all_blocks_and_gives_the_same(device, emulated):
    torch.manual_seed(0)
    keys, values = (
        torch.randn(3000, 64, dtype=torch.float32).bfloat16(),
        torch.randn(3000, 64, dtype=torch.float32).bfloat16(),
    )
    starts, lengths = torch.tensor([0, 3]), torch.tensor([3, 2990])
    query = torch.randn(1, 4, 64, dtype=torch.float32).bfloat16()
    got = ragged_decode.on_cuda(query, keys, values, starts, lengths, 0.3)
    alone = ragged_decode.on_cuda(query[:, 2:].contiguous(), keys, values, starts[1:], lengths[1:], 0.3)
    torch.testing.assert_close(got[:, 2:], alone, rtol=8e-3, atol=1e-3)
    want = ragged_decode.reference(query.double(), keys.double(), values.double(), starts, lengths, 0.3)
    torch.testing.assert_close(got.double(), want, rtol=1e-2, atol=4e-3)


@needs_compiler
@pytest.mark.parametrize("dtype", list(library.DTYPES), ids=str)
def test_large_logits_infinities_and_nans(device, dtype):
    torch.manual_seed(3)
    keys, values = torch.randn(600, 8, dtype=torch.float32), torch.randn(600, 8, dtype=torch.float32).to(dtype)
    starts, lengths, query = torch.tensor([0]), torch.tensor([600]), torch.ones(1, 1, 8, dtype=torch.float32).to(dtype)
    keys[500] += 300.0  # nothing else counts
    assert torch.equal(ragged_decode.on_cuda(query, keys.to(dtype), values, starts, lengths, 1.0)[0, 0], values[500])
    keys[:300] = float("-inf")
    got = ragged_decode.on_cuda(query, keys.to(dtype), values, starts, lengths, 0.0001)
    half = ragged_decode.on_cuda(query, keys.to(dtype), values, starts + 300, lengths - 300, 0.0001)
    torch.testing.assert_close(got, half)
    keys[400, 0] = float("nan")
    assert ragged_decode.on_cuda(query, keys.to(dtype), values, starts, lengths, 1.0).isnan().all()


@needs_compiler
@pytest.mark.parametrize("dtype", list(library.DTYPES), ids=str)
def test_append(device, dtype):
    generator = torch.Generator().manual_seed(2)
    for _ in rounds(30):
        dim = pick(generator, 8, 40, 128)
        keys, values, starts, lengths = random_slab(generator, dtype, dim, least_gap=1)
        new = torch.randn(2 * len(starts) * dim + 1, generator=generator, dtype=torch.float32).to(dtype)
        new = new[pick(generator, 0, 1) :][: 2 * len(starts) * dim].view(2, -1, dim)  # also at an odd address
        twin = keys.clone(), values.clone()
        append.reference(*twin, new[0], new[1], starts, lengths)
        append.on_cuda(keys, values, new[0], new[1], starts, lengths)
        assert torch.equal(keys, twin[0]) and torch.equal(values, twin[1])


@needs_compiler
@pytest.mark.parametrize("dtype", list(library.DTYPES), ids=str)
def test_compact(device, dtype):
    generator = torch.Generator().manual_seed(3)
    for _ in rounds(25):
        batch, heads, dim = pick(generator, 1, 2), pick(generator, 1, 3), pick(generator, 8, 40, 128)
        length = pick(generator, 0, 1, 31, 257, 1024, 1040, 2500)
        full = [
            torch.randn(batch, length, heads, dim, generator=generator, dtype=torch.float32).to(dtype).transpose(1, 2)
            for _ in range(2)
        ]
        keep = torch.rand(batch, heads, length, generator=generator, dtype=torch.float32) < pick(
            generator, 0.0, 0.02, 0.5, 1.0
        )
        room = keep.flatten(0, 1).sum(-1) + torch.randint(0, 3, (batch * heads,), generator=generator)
        starts = room.cumsum(0) - room
        buffers = [torch.zeros(int(room.sum()), dim, dtype=dtype) for _ in range(4)]
        compact.on_cuda(*buffers[:2], *full, keep, starts)
        compact.reference(*buffers[2:], *full, keep, starts)
        assert torch.equal(buffers[0], buffers[2]) and torch.equal(buffers[1], buffers[3])


@needs_compiler
@pytest.mark.parametrize("dtype", list(library.DTYPES), ids=str)
def test_observe(device, dtype):
    generator = torch.Generator().manual_seed(4)
    for _ in rounds(10):
        batch, heads, group = pick(generator, 1, 2), pick(generator, 1, 3), pick(generator, 1, 2, 7)
        window, before = pick(generator, 1, 8, 20, 32), pick(generator, 0, 1, 40, 128, 300)
        dim, length = pick(generator, 8, 40, 64, 128, 256), before + window
        query = (
            torch.randn(batch, window, heads * group, dim, generator=generator, dtype=torch.float32)
            .to(dtype)
            .transpose(1, 2)
        )
        keys = (
            torch.randn(batch, length, heads, dim, generator=generator, dtype=torch.float32).to(dtype).transpose(1, 2)
        )
        valid = torch.rand(batch, length, generator=generator, dtype=torch.float32) < pick(generator, 0.5, 1.1)
        got = observe.on_cuda(query, keys, valid, pick(generator, 1, 5), 0.2)
        want = observe.reference(query, keys, valid, 1, 0.2)
        assert got.shape == want.shape and torch.equal(got.isneginf(), want.isneginf())
        pooling = pick(generator, 1, 3, 99)
        got = observe.on_cuda(query, keys, valid, pooling, 0.2)
        torch.testing.assert_close(got, observe.reference(query, keys, valid, pooling, 0.2), rtol=1e-4, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("dtype", list(library.DTYPES), ids=str)
def test_argmax_rows(device, dtype):
    generator = torch.Generator().manual_seed(5)
    for _ in rounds(40):
        heads, group, rows = pick(generator, 1, 3), pick(generator, 1, 7), pick(generator, 0, 1, 5, 20)
        dim, length = pick(generator, 8, 40, 256), pick(generator, 1, 2, 130, 301)
        query = (
            torch.randn(rows, heads * group, dim, generator=generator, dtype=torch.float32).to(dtype).transpose(0, 1)
        )
        keys = torch.randn(heads, length, dim, generator=generator, dtype=torch.float32).to(dtype)
        if pick(generator, True, False):  # ties
            query, keys = (torch.randint(-1, 2, t.shape, generator=generator).to(dtype) for t in (query, keys))
        keys[0, length // 2, 0] = pick(generator, 0.0, float("nan"), float("-inf"), float("inf"))
        begins = torch.randint(0, length + 1, (rows,), generator=generator)
        ends = torch.randint(0, length + 1, (rows,), generator=generator)
        assert torch.equal(
            argmax_rows.on_cuda(query, keys, begins, ends), argmax_rows.reference(query, keys, begins, ends)
        )


@needs_compiler
def test_what_leaves_the_slab_touches_nothing_and_is_raised_by_the_next_call(device):
    keys, values = torch.randn(20, 8, dtype=torch.float32), torch.randn(20, 8, dtype=torch.float32)
    was = keys.clone()
    starts, lengths, query = torch.tensor([0, 10]), torch.tensor([4, 5]), torch.randn(1, 2, 8, dtype=torch.float32)
    for bad_starts, bad_lengths in [([-1, 10], [4, 5]), ([0, 2**62], [4, 5]), ([0, 10], [4, 11]), ([0, 10], [-1, 5])]:
        bad = torch.tensor(bad_starts), torch.tensor(bad_lengths)
        got = ragged_decode.on_cuda(query, keys, values, *bad, 1.0)
        wrong = 0 if bad_starts[0] < 0 or bad_lengths[0] < 0 else 1
        assert got[0, wrong].isnan().all() and not got[0, 1 - wrong].isnan().any()
        with pytest.raises(CacheError, match=f"index {wrong}: ragged_decode: a start or length left the slab"):
            append.on_cuda(keys, values, query[0], query[0], starts, lengths)
        assert torch.equal(keys, was)
    append.on_cuda(keys, values, query[0], query[0], starts, torch.tensor([10, 10]))
    assert torch.equal(keys, was)
    with pytest.raises(CacheError, match="append: there was no room"):
        library.raise_faults()
    keep = torch.ones(1, 2, 11, dtype=torch.bool)
    full = torch.randn(1, 2, 11, 8, dtype=torch.float32)
    compact.on_cuda(keys, values, full, full, keep, starts)
    assert torch.equal(keys, was)
    with pytest.raises(CacheError, match="compact: the selected rows"):
        library.raise_faults()
    found = argmax_rows.on_cuda(
        torch.randn(2, 2, 8, dtype=torch.float32), full[0], torch.tensor([0, 0]), torch.tensor([11, 12])
    )
    assert not found[:, 1].any()
    with pytest.raises(CacheError, match="index 1: argmax_rows"):
        library.raise_faults()
    library.raise_faults()  # said once


@needs_compiler
def test_addresses_that_16_byte_loads_cannot_serve_are_copied(device):
    torch.manual_seed(6)
    odd = torch.randn(1 + 2 * 30 * 8, dtype=torch.float32).bfloat16()[1:]
    keys, values = odd[: 30 * 8].view(30, 8), odd[30 * 8 :].view(30, 8)
    starts, lengths, query = torch.tensor([0]), torch.tensor([30]), torch.randn(1, 2, 8, dtype=torch.float32).bfloat16()
    assert keys.data_ptr() % 16
    got = ragged_decode.on_cuda(query, keys, values, starts, lengths, 0.3)
    assert torch.equal(got, ragged_decode.on_cuda(query, keys.clone(), values.clone(), starts, lengths, 0.3))


@needs_nvcc
def test_one_library_for_all_devices_is_built_without_a_warning_and_has_every_function(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "CUDA", [*build.CUDA, "-Werror", "all-warnings"])
    built = build.build_cuda()
    assert library.load(str(built), library.CUDA_ARGUMENTS)
    made = built.stat().st_mtime_ns
    assert build.build_cuda() == built and built.stat().st_mtime_ns == made


def test_without_nvcc_one_line_says_so(monkeypatch, caplog):
    monkeypatch.setenv("NVCC", "no-such-nvcc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    library.cuda_library.cache_clear()
    assert library.cuda_library() is None and library.cuda_library() is None
    assert [r.getMessage().count("\n") for r in caplog.records] == [0] and "no-such-nvcc was not found" in caplog.text
    library.cuda_library.cache_clear()
    assert not build.wants_cuda()
