"""Every selector with every policy: exact totals, padded batches, chunks, shared prefills, later turns, 8 bits."""

from __future__ import annotations

import copy

import pytest
import torch

from sparsemm.cache import tiles
from sparsemm.cache.prefill import prefill
from sparsemm.errors import CacheError
from sparsemm.policies import SELECTORS, selector_of
from sparsemm.policies.peak import Peak
from tests.cache.reading import read_padded
from tests.policies.making import ANY_LENGTH

B, W = 9, 4
POLICIES = [method for method in ANY_LENGTH if method != "full"]
# tests/cache/test_replay.py is about those that need a replay.
RATING = [name for name in SELECTORS if "replay" not in selector_of(f"snapkv+{name}").reads]
HOLDING = [name for name in RATING if selector_of(f"snapkv+{name}").rates_answers]


def padded(lab):
    """Prompts of 30 and 23 tokens, none twice: the same token has the same key norm everywhere, but for rounding."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.stack([torch.randperm(46, generator=generator)[:30] + 2 for _ in range(2)])
    tokens[1, :7] = 0
    return tokens, (tokens > 0).long()


def rows_of(cache):
    """For every layer its slots, and the keys and values that are held, head after head."""
    for layer in cache.ragged:
        keys, values, valid = read_padded(layer.slab)
        yield layer.slots.tolist(), keys[valid], values[valid]


def same(one, other, tolerance=None):
    """The same bits, or values that agree: keys are rotated by other positions where padding counts as one."""
    for (slots, keys, values), (want, *expected) in zip(rows_of(one), rows_of(other), strict=True):
        assert slots == want
        if tolerance is None:
            assert torch.equal(keys, expected[0]) and torch.equal(values, expected[1])
        torch.testing.assert_close(values, expected[1], rtol=tolerance or 0, atol=tolerance or 0)


@pytest.mark.parametrize("selector", RATING)
@pytest.mark.parametrize("policy", POLICIES)
def test_tokens_come_out_and_the_budget_is_held_exactly(lab, policy, selector):
    tokens, mask = padded(lab)
    cache = lab.cache(f"{policy}+{selector}", B)
    out = lab.generate(tokens, cache, 6)
    assert out.shape == (2, 36)
    budgets = torch.stack(cache.budgets())  # (L, B, Hkv)
    assert budgets.sum(dim=(0, 2)).tolist() == [lab.heads * B] * 2
    assert cache.kept_slots().tolist() == [lab.heads * (B + 5)] * 2  # the last token of an answer is not fed
    for layer in cache.ragged:
        _, values, valid = read_padded(layer.slab)
        assert values[valid].isfinite().all()


@pytest.mark.parametrize("selector", RATING)
@pytest.mark.parametrize("policy", ["sparsemm", "adakv"])
def test_a_padded_row_keeps_what_it_keeps_alone(lab, policy, selector):
    tokens, mask = padded(lab)
    together, alone = lab.cache(f"{policy}+{selector}", B), lab.cache(f"{policy}+{selector}", B)
    lab.run(together, tokens, mask)
    lab.run(alone, tokens[1:, 7:])
    together.batch_select_indices(torch.tensor([1]))
    same(together, alone, tolerance=1e-4)


@pytest.mark.parametrize("selector", RATING)
@pytest.mark.parametrize("policy", ["sparsemm", "adakv"])
def test_chunks_and_a_shared_prefill_keep_what_one_forward_keeps(lab, policy, selector):
    tokens, mask = padded(lab)
    method = f"{policy}+{selector}"
    whole, chunked = lab.cache(method, B), lab.cache(method, B, prompt_length=30)
    lab.generate(tokens, whole, 1)
    for start, stop in ((0, 13), (13, 15), (15, 30)):
        lab.run(chunked, tokens[:, start:stop], mask[:, :stop])
    same(chunked, whole, tolerance=1e-4)
    start = prefill(lab.model, {"input_ids": tokens, "attention_mask": mask}, None)
    for _ in range(2):  # nothing of the first one is left for the second
        same(start.compress(method, B, lab.scores, window=W), whole)


@pytest.mark.parametrize("selector", RATING)
@pytest.mark.parametrize("storage", ["int8", "fp8"])
def test_8_bits_keep_the_same_positions(lab, selector, storage):
    tokens, mask = padded(lab)
    plain, small = lab.cache(f"sparsemm+{selector}", B), lab.cache(f"sparsemm+{selector}", B, storage=storage)
    for cache in (plain, small):
        lab.run(cache, tokens, mask)
    for (slots, keys, _), (want, expected, _) in zip(rows_of(small), rows_of(plain), strict=True):
        assert slots == want
        assert ((keys - expected).abs() <= 0.07 * expected.abs().amax(-1, keepdim=True)).all()


@pytest.mark.parametrize("selector", RATING)
@pytest.mark.parametrize("policy", ["sparsemm", "adakv"])
def test_later_turns_are_brought_back_to_the_budget(lab, policy, selector):
    tokens, mask = padded(lab)
    if not selector_of(f"snapkv+{selector}").rates_turns:
        with pytest.raises(CacheError, match="rates no later turns"):
            lab.cache(f"{policy}+{selector}", B, recompress=True)
        return
    cache = lab.cache(f"{policy}+{selector}", B, recompress=True)
    lab.run(cache, tokens, mask)
    for length in (2, 11):  # shorter and longer than the window
        mask = torch.nn.functional.pad(mask, (0, length), value=1)
        mask[0, -length] = 0  # a turn that is shorter in one row
        lab.run(cache, lab.ids(length=length, seed=length), mask)
        budgets = torch.stack(cache.budgets())
        assert budgets.sum(dim=(0, 2)).tolist() == [lab.heads * B] * 2
        assert (budgets >= W).all()
    again = copy.deepcopy(cache)
    mask = torch.nn.functional.pad(mask, (0, 3), value=1)
    for one in (cache, again):
        lab.run(one, lab.ids(length=3, seed=8), mask)
    same(again, cache)


@pytest.mark.parametrize("selector", RATING)
def test_the_budget_is_held_while_answering_or_that_is_refused(lab, selector):
    tokens, mask = padded(lab)
    if selector not in HOLDING:
        with pytest.raises(CacheError, match=r"rates no tokens of an answer .*recompress=True"):
            lab.cache(f"sparsemm+{selector}", B, hold_budget=True)
        return
    cache = lab.cache(f"sparsemm+{selector}", B, hold_budget=True)
    lab.generate(tokens, cache, 12)
    assert cache.kept_slots().tolist() == [lab.heads * B] * 2
    for layer in cache.ragged:
        assert layer.eviction.worth[layer.eviction.order >= 0].isfinite().all()


@pytest.mark.parametrize("selector", RATING)
def test_half_precision_and_a_short_prompt(lab, selector):
    model = copy.deepcopy(lab.model).bfloat16()
    for length, kept in ((30, B), (B, B), (B - 1, B - 1), (2, 2)):
        cache = lab.cache(f"snapkv+{selector}", B)
        own = type(lab)(model).cache(f"snapkv+{selector}", B)
        lab.run(cache, lab.ids(length=length))
        type(lab)(model).run(own, lab.ids(length=length))
        for one in (cache, own):
            assert torch.stack(one.budgets()).unique().tolist() == [kept]


@pytest.mark.parametrize("selector", ["peak", "unpooled"])
def test_an_answer_is_counted_over_the_query_group_as_the_prompt_was(lab, monkeypatch, selector):
    asked = []
    watched = tiles.watched_decode
    monkeypatch.setattr(tiles, "watched_decode", lambda *a: asked.append(a[3]) or watched(*a))
    lab.generate(lab.ids(), lab.cache(f"snapkv+{selector}", B, hold_budget=True), 3)
    assert set(asked) == {"max" if selector == "peak" else "mean"}


def test_what_is_kept_in_any_case_takes_no_part_in_the_split(lab, monkeypatch):
    """The window's rows have a worth too, which must not draw slots to their heads."""
    want = lab.cache("adakv+peak", B)
    lab.run(want, lab.ids())
    rate = Peak.rate

    def favoured(self, prompt):
        worth = rate(self, prompt)
        worth[:, 0, -W:] += 100.0
        return worth

    monkeypatch.setattr(Peak, "rate", favoured)
    cache = lab.cache("adakv+peak", B)
    lab.run(cache, lab.ids())
    assert torch.equal(torch.stack(cache.budgets()), torch.stack(want.budgets()))
