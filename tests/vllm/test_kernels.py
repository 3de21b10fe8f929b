"""The plain kernel against attention written out; and vLLM's own against the plain one, where it is installed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from sparsemm.vllm.kernels import CpuKernel, Lanes, Sequences, TorchKernel

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


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make vllm")
@pytest.mark.parametrize("query_lens", QUERIES)
@pytest.mark.parametrize("size,dim,isa", [(32, 64, "vec"), (16, 64, "vec16"), (32, 128, "vec"), (32, 80, "vec16")])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_vllms_own_kernel(query_lens, size, dim, isa, dtype, tolerance):
    from vllm import _custom_ops  # noqa: F401  # loads the operators

    check(CpuKernel(isa, GROUP, dim, size, dtype, False), size, dim, query_lens, dtype, tolerance)
