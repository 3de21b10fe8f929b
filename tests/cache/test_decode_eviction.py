"""Eviction while answering: the budget holds at every step, and the rows that stay are the slow way's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sparsemm.errors import CacheError
from sparsemm.policies import selector_of
from tests.cache.reading import NoHostReads
from tests.policies.making import ANY_LENGTH

COMPRESSED = [method for method in ANY_LENGTH if method != "full" and selector_of(method).rates_answers]
TURNS = [method for method in COMPRESSED if selector_of(method).rates_turns]


@pytest.mark.parametrize("method", COMPRESSED)
@pytest.mark.parametrize("length", [30, 12, 3, 1])
def test_the_total_is_the_budget_after_every_step(lab, method, length):
    cache, tokens = lab.cache(method, 12, hold_budget=True), lab.ids(length=60)
    lab.run(cache, tokens[:, :length])
    where = cache.ragged[0].slab.keys.data_ptr()
    for seen in range(length, 60):
        assert cache.kept_slots().tolist() == [lab.heads * min(12, seen)] * 2
        lab.run(cache, tokens[:, seen : seen + 1])
    assert cache.ragged[0].slab.keys.data_ptr() == where
    assert cache.get_seq_length() == 60


def noted(layer, row, head):
    """(token number, worth) of the rows a head holds, from the bookkeeping."""
    at = row * layer.slab.num_kv_heads + head
    rows = slice(int(layer.slab.starts[at]), int(layer.slab.starts[at] + layer.eviction.limit[at] + 1))
    notes = zip(layer.eviction.order[rows].tolist(), layer.eviction.worth[rows].tolist(), strict=True)
    return sorted((number, worth) for number, worth in notes if number >= 0)


def numbers(layer, row, head):
    """Token numbers a head holds."""
    return [number for number, _ in noted(layer, row, head)]


def test_streaming_is_the_first_four_and_the_newest_for_ever(lab):
    cache, tokens = lab.cache("streaming", 12, hold_budget=True), lab.ids(length=70)
    lab.run(cache, tokens[:, :30])
    for seen in range(30, 70):
        lab.run(cache, tokens[:, seen : seen + 1])
        want = [0, 1, 2, 3, *range(seen + 1 - 8, seen + 1)]
        assert all(numbers(layer, row, head) == want for layer in cache.ragged for row in range(2) for head in range(3))


def test_elastic_cache_evicts_the_token_that_leaves_the_window(lab):
    cache, tokens = lab.cache("elasticcache", 12, hold_budget=True), lab.ids(length=50)
    lab.run(cache, tokens[:, :30])
    first = [numbers(layer, 1, head) for layer in cache.ragged for head in range(3)]
    for seen in range(30, 50):
        lab.run(cache, tokens[:, seen : seen + 1])
    for before, after in zip(first, (numbers(layer, 1, h) for layer in cache.ragged for h in range(3)), strict=True):
        assert after == [*before[:8], *range(46, 50)]
    with pytest.raises(CacheError, match=r"MergeNearest, which rates no later turns .*without hold_budget"):
        lab.run(cache, tokens[:, :2])


@pytest.mark.parametrize("method", ["snapkv", "sparsemm", "h2o"])
def test_steps_equal_a_full_cache_with_evicted_tokens_hidden(lab, method):
    """Oracle: transformers' attention over everything, hiding what a slow eviction by loops has dropped."""
    window = 6 if method == "h2o" else 4
    cache, tokens = lab.cache(method, 12, hold_budget=True), lab.ids(batch=1, length=60)
    lab.run(cache, tokens[:, :30])
    layers, _, heads = lab.shape
    kept = [[dict.fromkeys(numbers(layer, 0, h)) for h in range(heads)] for layer in cache.ragged]
    for layer, one in zip(cache.ragged, kept, strict=True):
        for h in range(heads):
            for number, worth in noted(layer, 0, h):
                one[h][number] = [worth, 0]

    def hiding(module, query, key, value, attention_mask, **options):
        if query.shape[2] > 1:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        newest = key.shape[2] - 1
        mask = torch.zeros(heads, newest + 1, dtype=torch.bool)
        for h, one in enumerate(kept[module.layer_idx]):
            one[newest] = [0.0, 0]
            mask[h, list(one)] = True
            weights = torch.softmax(
                (query[0, 2 * h : 2 * h + 2, 0] @ key[0, h].T * 8**-0.5).masked_fill(~mask[h], -torch.inf), -1
            ).mean(0)
            for number, state in one.items():
                if method == "h2o":
                    state[0] += float(weights[number])
                elif newest - number < window:
                    state[0] = (state[0] * state[1] + float(weights[number])) / (state[1] + 1)
                    state[1] += 1
            limit = int(cache.budgets()[module.layer_idx][0, h])
            if len(one) > limit:
                del one[min((n for n in one if newest - n >= window), key=lambda n: (one[n][0], n))]
        mask = mask.repeat_interleave(2, 0)[None, :, None]
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    AttentionInterface.register("test_slow_eviction", hiding)
    for seen in range(30, 60):
        got = lab.run(cache, tokens[:, seen : seen + 1])
        if seen == 30:
            full = DynamicCache()
            lab.run(full, tokens[:, :30])
        lab.model.set_attn_implementation("test_slow_eviction")
        want = lab.run(full, tokens[:, seen : seen + 1])
        lab.model.set_attn_implementation("sdpa")
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
        for layer, one in zip(cache.ragged, kept, strict=True):
            assert [numbers(layer, 0, h) for h in range(heads)] == [sorted(k) for k in one]


def test_padded_rows_of_a_batch_evict_like_the_row_alone(lab):
    tokens = lab.ids(length=50)
    tokens[0, :20] = 0
    together = lab.cache("sparsemm", 12, hold_budget=True)
    alone = lab.cache("sparsemm", 12, hold_budget=True)
    for row, cache in ((None, together), (0, alone)):
        prompt = tokens[:, :28] if row is None else tokens[:1, 20:28]
        seen = (tokens > 0).long() if row is None else torch.ones(1, 30, dtype=torch.long)
        lab.run(cache, prompt, seen[:, : prompt.shape[1]])
        for step in range(22):
            ids = tokens[:, 28 + step : 29 + step] if row is None else tokens[:1, 28 + step : 29 + step]
            last = lab.run(cache, ids, seen[:, : prompt.shape[1] + step + 1])
        if row is None:
            got = last
    torch.testing.assert_close(got[:1], last, rtol=1e-4, atol=1e-4)
    for a, b in zip(together.ragged, alone.ragged, strict=True):
        assert [numbers(a, 0, h) for h in range(3)] == [numbers(b, 0, h) for h in range(3)]


@pytest.mark.parametrize("method", TURNS)
def test_turns_go_on_at_the_budget(lab, method):
    cache, tokens = lab.cache(method, 12, hold_budget=True), lab.ids(length=99)
    seen = 0
    for turn in (20, 1, 1, 1, 5, 1, 1, 30, 2, 1, 2, 3, 4):
        lab.run(cache, tokens[:, seen : seen + turn])
        seen += turn
        assert cache.kept_slots().tolist() == [lab.heads * 12] * 2
        for layer in cache.ragged:
            assert all(numbers(layer, 1, h)[-4:] == list(range(seen - 4, seen)) for h in range(3))


@pytest.mark.parametrize("method", TURNS)
@pytest.mark.parametrize("length", [3, 13, 14])
def test_a_turn_after_evictions_cannot_raise_the_total_or_lower_it(lab, method, length):
    """Budgets that the first prompt was too short for are not there later either: the layer's others get them."""
    cache, tokens = lab.cache(method, 12, hold_budget=True), lab.ids(length=99)
    lab.run(cache, tokens[:, :length])
    for seen in range(length, 40):
        lab.run(cache, tokens[:, seen : seen + 1])
    for start in (40, 42, 60):
        lab.run(cache, tokens[:, start : start + 2])
        assert cache.kept_slots().tolist() == [lab.heads * 12] * 2


def test_beams_and_batches_carry_their_bookkeeping(lab):
    tokens = lab.ids(length=20)
    cache = lab.cache("adakv", 12, hold_budget=True)
    lab.generate(tokens, cache, new=30, num_beams=3)
    assert cache.kept_slots().tolist() == [lab.heads * 12] * 6
    one, two = (lab.cache("adakv", 12, hold_budget=True) for _ in range(2))
    for cache in (one, two):
        lab.run(cache, tokens)
        lab.run(cache, tokens[:, :1])
    one.batch_repeat_interleave(2)
    one.batch_select_indices(torch.tensor([3, 0]))
    got = torch.cat([lab.run(one, tokens[[1, 0], at : at + 1]) for at in range(8)], 1)
    want = torch.cat([lab.run(two, tokens[:, at : at + 1]) for at in range(8)], 1)
    torch.testing.assert_close(got[[1, 0]], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("storage", ["model", "int8"])
def test_a_step_reads_nothing_on_the_host(lab, storage):
    cache, tokens = lab.cache("sparsemm", hold_budget=True, storage=storage), lab.ids()
    lab.run(cache, tokens)
    with NoHostReads():
        lab.run(cache, tokens[:, :1])


def test_tokens_cannot_be_taken_back(lab):
    cache = lab.cache(hold_budget=True)
    lab.run(cache, lab.ids())
    assert not cache.is_croppable
    cache.crop(0)
    with pytest.raises(CacheError, match="evicted"):
        cache.crop(-1)


def test_in_inference_mode_and_outside(lab):
    cache, tokens = lab.cache(hold_budget=True), lab.ids()
    with torch.inference_mode():
        lab.run(cache, tokens)
        lab.run(cache, tokens[:, :1])
    lab.run(cache, tokens[:, :1])
    assert np.array_equal(cache.kept_slots(), [lab.heads * 9] * 2)


@pytest.mark.parametrize("method", ["snapkv", "sparsemm"])
def test_the_bookkeeping_is_in_the_bytes(lab, method):
    """8 bytes per row, however unequal the heads are."""
    plain, held = lab.cache(method), lab.cache(method, hold_budget=True)
    for cache in (plain, held):
        lab.run(cache, lab.ids())
    assert plain.kept_bytes() == held.kept_bytes()
    rows = 2 * lab.heads * (9 + 1)
    assert held.slab_bytes() == rows * 2 * 8 * 4 + rows * 8 + 2 * lab.heads * (8 + 4 + 4)


def test_nothing_to_hold_is_refused(lab):
    with pytest.raises(CacheError, match="hold_budget"):
        lab.cache("full", hold_budget=True)
    with pytest.raises(CacheError, match="hold_budget"):
        lab.cache(hold_budget=True, max_new_tokens=4)
