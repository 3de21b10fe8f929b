"""Reads of a ragged cache against padded ones, and what a step and a turn allocate when one head dominates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import sparsemm
from sparsemm.cache import slab, tiles
from sparsemm.cache.attention import attend
from sparsemm.cache.quantized import STORAGES, QuantizedSlab
from sparsemm.cache.slab import Slab, bucket_by_length, pieces
from sparsemm.ops import library
from tests.cache.reading import attention

HEADS, DIM = 4, 16


def skewed(seed, storage="model", dtype=torch.float32, batch=3):
    """A slab of random lengths: one head of 400 rows, one empty, the others short."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 30, (batch, HEADS), generator=generator)
    lengths[0, int(torch.randint(HEADS, (), generator=generator))] = 400
    lengths[1, 2] = 0
    keys, values = (
        torch.randn(batch, HEADS, 400, DIM, generator=generator, dtype=torch.float32).to(dtype) for _ in range(2)
    )
    keep = torch.rand(batch, HEADS, 400, generator=generator, dtype=torch.float32).argsort(-1) < lengths[..., None]
    if storage == "model":
        return Slab(keys, values, keep)
    return QuantizedSlab(keys, values, keep, storage=storage)


@pytest.mark.parametrize("storage", ["model", *STORAGES])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("by_group", ["mean", "max"])
def test_one_token_agrees_with_the_padded_way(both, storage, group, seed, by_group):
    held = skewed(seed, storage)
    query = torch.randn(3, HEADS * group, 1, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    want, looked_at = attention(query, held, 0.3)
    torch.testing.assert_close(tiles.decode(query, held, 0.3), want.float(), rtol=1e-4, atol=1e-5)
    got, weights = tiles.watched_decode(query, held, 0.3, by_group)
    torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-5)
    looked_at = looked_at.unflatten(1, (HEADS, group))
    looked_at = (looked_at.mean(2) if by_group == "mean" else looked_at.amax(2)).flatten(0, 1)
    owner, at = held.owners()
    in_use = at < held.lengths[owner]
    assert int(in_use.sum()) == int(held.lengths.sum())
    torch.testing.assert_close(weights[in_use], looked_at[owner[in_use], at[in_use]].float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("storage", ["model", *STORAGES])
@pytest.mark.parametrize("rows", [1 << 15, 64])
def test_a_turn_agrees_with_its_tokens_one_by_one(both, monkeypatch, storage, rows):
    monkeypatch.setattr(slab, "MOST_ROWS", rows)
    monkeypatch.setattr("sparsemm.cache.attention.MOST_LOGITS", rows * 100)
    new, group = 5, 2
    held = skewed(7, storage)
    keys, values = (
        torch.randn(3, HEADS, new, DIM, dtype=torch.float32),
        torch.randn(3, HEADS, new, DIM, dtype=torch.float32),
    )
    query = torch.randn(3, HEADS * group, new, DIM, dtype=torch.float32)
    want = []
    for t in range(new):
        held.append(keys[:, :, t : t + 1], values[:, :, t : t + 1])
        want.append(attention(query[:, :, t : t + 1], held, 0.3)[0])
    torch.testing.assert_close(attend(query, held, 0.3), torch.cat(want, 2).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_numbers(both, dtype):
    held, query = skewed(1, dtype=dtype), torch.randn(3, HEADS, 1, DIM, dtype=dtype)
    want, _ = attention(query, held, 0.3)
    got, weights = tiles.watched_decode(query, held, 0.3)
    assert got.dtype == dtype and weights.dtype == torch.float32
    torch.testing.assert_close(got, want.to(dtype))


def test_another_heads_nan_stays_there(both):
    held = skewed(2)
    held.keys[held.starts[0]] = held.values[held.starts[0]] = float("nan")
    held.lengths[0] = held.lengths[0].clamp(min=1)
    query = torch.randn(3, HEADS, 1, DIM, dtype=torch.float32)
    for got in (tiles.watched_decode(query, held, 0.3)[0], attend(query.expand(-1, -1, 2, -1), held, 0.3)):
        assert got[0, 0].isnan().all() and not got[0, 1:].isnan().any() and not got[1:].isnan().any()


def test_gradients_of_one_token():
    held = skewed(3, dtype=torch.float64)
    query = torch.randn(3, HEADS, 1, DIM, dtype=torch.float64, requires_grad=True)
    tiles.decode(query, held, 0.3).square().sum().backward()
    mine, query.grad = query.grad.clone(), None
    attention(query, held, 0.3)[0].square().sum().backward()
    torch.testing.assert_close(mine, query.grad)


def test_what_is_cut_into_tiles_is_at_most_doubled():
    for lengths in ([0, 0, 5], [1000, 1, 1, 0], [7], [33] * 50, [0]):
        counts = torch.tensor(lengths)
        rows = max(sum(lengths), 1)
        cut = tiles.Tiles(counts.cumsum(0) - counts, counts, rows)
        assert cut.rows.numel() <= 2 * max(rows, len(lengths))
        assert sorted(cut.rows[cut.real].tolist()) == list(range(sum(lengths)))
        assert not cut.rows.numel() or 0 <= int(cut.rows.min()) <= int(cut.rows.max()) < rows


def test_heads_of_similar_length_go_together():
    assert bucket_by_length([6144, 0, 40, 33, 64, 31]) == [([0], 6144), ([2, 3, 4], 64), ([5], 31)]
    assert bucket_by_length([0, 0]) == bucket_by_length([]) == []
    assert [len(group) for group, _ in bucket_by_length([1 << 14] * 5)] == [2, 2, 1]


def test_pieces_cover_everything():
    for count, numbers in ((0, 8), (5, 1 << 20), (100_000, 128), (3, 0)):
        cut = pieces(count, numbers)
        assert [i for part in cut for i in range(count)[part]] == list(range(count)) and len(cut) <= 8


class Largest(TorchDispatchMode):
    """Bytes of the largest storage that an operation returned, but for those `known`."""

    def __init__(self, known):
        super().__init__()
        self.known, self.bytes = {t.untyped_storage().data_ptr() for t in known}, 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, one.untyped_storage().nbytes())
        return out


@pytest.fixture(scope="module")
def many_heads():
    sizes = dict(vocab_size=32, hidden_size=32, intermediate_size=16, num_hidden_layers=1, head_dim=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(num_attention_heads=32, num_key_value_heads=32, **sizes)
        return LlamaForCausalLM._from_config(config, dtype=torch.float32).eval().to(torch.bfloat16)


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize("new", [1, 8])
@pytest.mark.parametrize(
    "options",
    [{}, {"storage": "int8"}, {"storage": "fp8"}, {"hold_budget": True}, {"recompress": True}]
    + [{"hold_budget": True, "storage": "int8"}],
)
def test_the_largest_tensor_is_a_small_multiple_of_the_rows(monkeypatch, many_heads, options, new, served):
    """One head keeps 1,000 rows and the others 8: padded to the longest, all of them would be 25 times the rows."""
    if not served:
        monkeypatch.setattr(tiles, "decodes", lambda *_: False)
    elif not library.available():
        pytest.skip("no C++ compiler")
    scores = np.full((1, 32), 1e-6)
    scores[0, 3] = 1.0
    cache = sparsemm.compressed_cache(many_heads, "sparsemm", 40, scores, window=8, rho=0.0, **options)
    tokens = torch.randint(32, (1, 1100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        many_heads(tokens, past_key_values=cache, logits_to_keep=1)
        held = cache.ragged[0].slab
        rows = int(held.lengths.sum())
        assert int(held.lengths.max()) > 24 * rows / 32
        known = [*many_heads.parameters(), *(getattr(held, name) for name in held.BUFFERS)]
        with Largest(known) as largest:
            many_heads(tokens[:, :new], past_key_values=cache, logits_to_keep=1)
    allocated = len(held.keys) + new * 32
    assert largest.bytes <= 2 * allocated * 64 * 4  # keys alone, twice the rows, in fp32
