"""One step in one call equals the two operations, and stands back where they have something to say."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch

from sparsemm.errors import CacheError
from sparsemm.ops import append, ragged_decode
from sparsemm.ops.decode_step import decode_step, serves_steps
from sparsemm.ops.library import NO_MEMORY
from tests.ops.operations import DTYPES, needs_compiler, ragged

pytestmark = [needs_compiler, pytest.mark.usefixtures("fresh_library")]


def step(dtype=torch.float32, dim=8, gaps=(1, 1, 1, 1)):
    """Arguments of a step of two rows with two KV heads, and three query heads for each."""
    keys, values, starts, lengths = ragged([2, 3, 0, 4], dim, dtype, list(gaps), 0)
    query = torch.randn(2, 1, 6, dim, dtype=torch.float32).to(dtype).transpose(1, 2)
    new_keys, new_values = (torch.randn(2, 1, 2, dim, dtype=torch.float32).to(dtype).transpose(1, 2) for _ in range(2))
    return [keys, values, starts, lengths, query, new_keys, new_values, 0.4]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 13, 64])
def test_a_step_is_append_and_decode(dtype, dim):
    together, apart = step(dtype, dim), step(dtype, dim)
    assert serves_steps(*together[:2])
    keys, values, starts, lengths, query, new_keys, new_values, scaling = apart
    append.append_row(keys, values, new_keys, new_values, starts, lengths)
    lengths += 1
    want = ragged_decode.ragged_decode(query[:, :, 0].contiguous(), keys, values, starts, lengths, scaling)
    assert torch.equal(decode_step(*together), want[:, None])
    for one, other in zip(together[:4], apart[:4], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("at", "change"),
    [
        (0, torch.Tensor.double),
        (1, lambda t: t[:-1]),
        (1, lambda t: torch.stack([t, t], -1)[..., 0]),
        (2, torch.Tensor.int),
        (3, lambda t: t[:3]),
        (3, lambda t: torch.stack([t, t], -1)[..., 0]),
        (4, torch.Tensor.half),
        (4, lambda t: t[:, :3]),
        (4, lambda t: t[..., :7]),
        (4, lambda t: torch.cat([t, t], dim=2)),
        (4, lambda t: t[:1]),
        (4, lambda t: t.to("meta")),
        (4, lambda t: t.requires_grad_()),
        (5, torch.Tensor.bfloat16),
        (5, lambda t: t[:, :1]),
        (6, lambda t: t[:1]),
    ],
)
def test_what_does_not_fit_changes_nothing(at, change):
    arguments = step()
    before = [t.clone() for t in arguments[:4]]
    whole = arguments[at]
    arguments[at] = change(whole)
    assert decode_step(*arguments) is None
    arguments[at] = whole
    assert all(torch.equal(one, other) for one, other in zip(arguments[:4], before, strict=True))


def test_a_segment_without_room_is_refused_and_nothing_written():
    arguments = step(gaps=(1, 0, 1, 1))
    before = [t.clone() for t in arguments[:4]]
    with pytest.raises(CacheError, match="segment 1: it has no room"):
        decode_step(*arguments)
    assert all(torch.equal(one, other) for one, other in zip(arguments[:4], before, strict=True))


def test_without_memory_for_partial_results_there_is_an_error(monkeypatch):
    lacking = SimpleNamespace(sparsemm_decode_step=lambda *arguments: NO_MEMORY)
    monkeypatch.setattr(importlib.import_module("sparsemm.ops.decode_step"), "library", lambda: lacking)
    with pytest.raises(MemoryError, match="no memory"):
        decode_step(*step())


def test_another_backend_is_left_to_the_operations(monkeypatch):
    keys, values = step()[:2]
    monkeypatch.setenv("SPARSEMM_DECODE", "twin")
    assert not serves_steps(keys, values)
    monkeypatch.delenv("SPARSEMM_DECODE")
    assert serves_steps(keys, values)
    assert not serves_steps(keys.double(), values.double())
