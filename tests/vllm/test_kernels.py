"""Kernels against attention written out: the plain one, vLLM's own where it is installed, and that for CUDA devices.

The last runs on stand-ins for vLLM's functions, which check what those require (flash.py).
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsemm.vllm.kernels import CpuKernel, FlashKernel, Lanes, Sequences, TorchKernel
from tests.vllm import flash

BLOCKS, HEADS, GROUP = 40, 3, 2


def step(rng, size, dim, query_lens, layers=2):
    """A cache with rows of every length, and the sequences that add and read the newest."""
    requests = len(query_lens)
    lengths = rng.integers(max(query_lens), 5 * size, (layers, requests, HEADS))
    runs = -(-int(lengths.max()) // size)
    blocks = 1 + rng.permutation(requests * runs)
    lanes = blocks.reshape(requests, 1, runs) * HEADS + np.arange(HEADS)[:, None]
    lanes = np.broadcast_to(lanes, (layers, requests, HEADS, runs))
    slots = []
    for layer in range(layers):
        for request, count in enumerate(query_lens):
            for head in range(HEADS):
                for i in range(count):
                    place = lengths[layer, request, head] - count + i
                    slots.append(lanes[layer, request, head, place // size] * size + place % size)
    starts = np.concatenate([[0], np.repeat(query_lens, HEADS).cumsum()])
    return Sequences(
        list(query_lens),
        None,
        torch.from_numpy(starts).int(),
        torch.tensor(slots, dtype=torch.int64).view(layers, -1),
        torch.from_numpy(lengths.reshape(layers, -1)).int(),
        torch.from_numpy(lanes.reshape(layers, -1, runs).copy()).int(),
        lengths.max(axis=(0, 2)).tolist(),
        [],
    )


def written_out(keys, values, query, sequences, at, size, scale):
    """Attention one query at a time, from rows (slots, D)."""
    result, token = [], 0
    sequence = 0
    for count in sequences.query_lens:
        for _ in range(HEADS):
            length = int(sequences.lengths[at, sequence])
            lanes = sequences.lanes[at, sequence].long()
            slots = (lanes[:, None] * size + torch.arange(size)).flatten()[:length]
            for i in range(count):
                seen = slots[: length - count + i + 1]
                weights = torch.softmax(query[token].double() @ keys[seen].double().T * scale, dim=-1)
                result.append(weights @ values[seen].double())
                token += 1
            sequence += 1
    return torch.stack(result)


def check(kernel, size, dim, query_lens, dtype, tolerance):
    rng = np.random.default_rng(size + dim + len(query_lens))
    torch.manual_seed(dim)
    sequences = step(rng, size, dim, query_lens)
    sequences.schedule = kernel.prepare(sequences)
    lanes = Lanes.of(torch.zeros(BLOCKS, HEADS, size, 2 * dim, dtype=dtype))
    every = torch.arange(BLOCKS * HEADS * size)
    keys, values = torch.randn(2, len(every), dim).to(dtype)
    kernel.write(lanes, keys, values, every)
    back = kernel.read(lanes, every.flip(0))
    assert torch.equal(back[0], keys.flip(0)) and torch.equal(back[1], values.flip(0))
    for at in range(2):
        new = torch.randn(2, sequences.slots.shape[1], dim).to(dtype)
        kernel.write(lanes, *new, sequences.slots[at])
        keys[sequences.slots[at]], values[sequences.slots[at]] = new
        query = torch.randn(sequences.slots.shape[1], GROUP, dim).to(dtype)
        output = kernel.attend(lanes, query, sequences, at, dim**-0.5)
        right = written_out(keys, values, query, sequences, at, size, dim**-0.5)
        assert (output.double() - right).abs().max() < tolerance


QUERIES = [(1, 1, 1), (5, 1, 9), (7,)]


@pytest.mark.parametrize("query_lens", QUERIES)
@pytest.mark.parametrize("size,dim", [(4, 12), (16, 8)])
def test_the_plain_kernel(query_lens, size, dim):
    check(TorchKernel(), size, dim, query_lens, torch.float32, 1e-5)


@pytest.mark.parametrize("query_lens", QUERIES)
@pytest.mark.parametrize("size,dim", [(16, 8), (32, 16)])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float16, 3e-3), (torch.bfloat16, 3e-2)])
def test_the_kernel_for_cuda(query_lens, size, dim, dtype, tolerance):
    check(FlashKernel(**flash.kernel_options("cpu")), size, dim, query_lens, dtype, tolerance)


def test_a_sequence_without_rows_gets_zeros_and_slot_minus_one_is_skipped():
    kernel, size, dim = FlashKernel(**flash.kernel_options("cpu")), 16, 8
    rng = np.random.default_rng(0)
    sequences = step(rng, size, dim, (1, 1), layers=1)
    lanes = Lanes.of(torch.full((BLOCKS, HEADS, size, 2 * dim), float("nan"), dtype=torch.float16))
    kernel.write(lanes, *torch.ones(2, 2, dim, dtype=torch.float16), torch.tensor([-1, 5]))
    assert lanes.keys.isfinite().nonzero()[:, :2].unique(dim=0).tolist() == [[0, 5]]
    sequences.lengths[:] = 0
    query = torch.randn(sequences.slots.shape[1], GROUP, dim, dtype=torch.float16)
    assert not kernel.attend(lanes, query, sequences, 0, 1.0).any()


with_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make vllm")


@with_vllm
def test_vllms_functions_for_cuda_have_the_parameters_of_the_stand_ins():
    """Those that the kernel passes; read from the source, because the compiled part is there for CUDA only."""
    root = Path(importlib.util.find_spec("vllm").origin).parent
    for path, function in (
        ("vllm_flash_attn/flash_attn_interface.py", flash.flash_attn_varlen_func),
        ("_custom_ops.py", flash.reshape_and_cache_flash),
    ):
        tree = ast.parse((root / path).read_text(encoding="utf-8"))
        (found,) = [x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == function.__name__]
        assert {*inspect.signature(function).parameters} - {"dtypes"} <= {argument.arg for argument in found.args.args}


@with_vllm
@pytest.mark.parametrize("query_lens", QUERIES)
@pytest.mark.parametrize("size,dim,isa", [(32, 64, "vec"), (16, 64, "vec16"), (32, 128, "vec"), (32, 80, "vec16")])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_vllms_own_kernel(query_lens, size, dim, isa, dtype, tolerance):
    from vllm import _custom_ops  # noqa: F401  # loads the operators

    check(CpuKernel(isa, GROUP, dim, size, dtype, False), size, dim, query_lens, dtype, tolerance)
