"""A prompt in chunks is compressed as if it had come at once."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import DynamicCache

from sparsemm.errors import CacheError
from tests.cache.reading import read_padded
from tests.policies.making import ANY_LENGTH


def contents(cache):
    kept = [read_padded(layer.slab) for layer in cache.ragged]
    return [(keys[valid], values[valid]) for keys, values, valid in kept]


@pytest.mark.parametrize("method", ANY_LENGTH)
@pytest.mark.parametrize("chunk", [1, 2, 7, 29, 64])
def test_chunks_keep_what_one_forward_keeps(lab, method, chunk):
    tokens = lab.ids()
    tokens[0, :6] = 0
    mask = (tokens > 0).long()
    whole, chunked = lab.cache(method), lab.cache(method, prompt_length=30)
    want = lab.run(whole, tokens, mask)[:, -1]
    for start in range(0, 30, chunk):
        got = lab.run(chunked, tokens[:, start : start + chunk], mask[:, : start + chunk])[:, -1]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert chunked.get_seq_length() == 30
    assert all(torch.equal(a, b) for a, b in zip(whole.budgets(), chunked.budgets(), strict=True))
    for (keys, values), (wanted_keys, wanted_values) in zip(contents(chunked), contents(whole), strict=True):
        torch.testing.assert_close(keys, wanted_keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(values, wanted_values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["snapkv", "h2o", "full"])
def test_generate_in_chunks(lab, method):
    tokens = lab.ids()
    want = lab.generate(tokens, lab.cache(method))
    assert torch.equal(lab.generate(tokens, lab.cache(method, prompt_length=30), prefill_chunk_size=8), want)


def test_without_a_length_only_the_first_chunk_is_compressed(lab):
    cache = lab.cache()
    lab.generate(lab.ids(), cache, new=1, prefill_chunk_size=20)
    assert cache.kept_slots().tolist() == [lab.heads * (9 + 10)] * 2


def test_nothing_counts_as_kept_before_the_last_chunk(lab):
    cache = lab.cache(prompt_length=30)
    lab.run(cache, lab.ids()[:, :20])
    assert cache.get_seq_length() == 20
    with pytest.raises(CacheError, match="prompt_length is 30, but only 20 tokens"):
        cache.kept_slots()
    with pytest.raises(CacheError, match="chunk of 2"):
        lab.run(cache, lab.ids(batch=1)[:, 20:])


def test_a_single_token_may_complete_the_prompt_and_decoding_goes_on(lab):
    cache, own = lab.cache("full", prompt_length=5), DynamicCache()
    tokens = lab.ids(length=8)
    for at in range(8):
        torch.testing.assert_close(lab.run(cache, tokens[:, at : at + 1]), lab.run(own, tokens[:, at : at + 1]))


def test_rows_can_be_selected_between_chunks(lab):
    cache, tokens = lab.cache(prompt_length=30), lab.ids()
    lab.run(cache, tokens[:, :20])
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    got = lab.run(cache, tokens[[1, 0], 20:])[:, -1]
    torch.testing.assert_close(got, lab.run(lab.cache(), tokens[[1, 0]])[:, -1], rtol=1e-4, atol=1e-4)


def test_a_prompt_that_is_not_whole_cannot_be_cropped(lab):
    cache = lab.cache(prompt_length=30)
    lab.run(cache, lab.ids()[:, :20])
    cache.crop(0)
    with pytest.raises(CacheError, match="not complete"):
        cache.crop(-1)


@pytest.mark.parametrize("extra", [1, 4])
@pytest.mark.parametrize("first", [0, 10])
def test_tokens_behind_the_prompt_see_the_compressed_prompt(lab, extra, first):
    tokens = lab.ids(batch=2, length=30 + extra)
    together, apart = lab.cache(prompt_length=30), lab.cache()
    if first:
        lab.run(together, tokens[:, :first])
    got = lab.run(together, tokens[:, first:])
    want = torch.cat([lab.run(apart, tokens[:, :30])[:, first:], lab.run(apart, tokens[:, 30:])], dim=1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    together.crop(-extra)
    assert together.kept_slots().tolist() == [lab.heads * 9] * 2


@pytest.mark.parametrize("length", [0, -3])
def test_impossible_lengths_are_refused(lab, length):
    with pytest.raises(CacheError, match="prompt_length"):
        lab.cache(prompt_length=length)


def test_an_answer_to_a_prompt_that_is_not_whole_is_told(lab, caplog):
    cache = lab.cache(prompt_length=31)
    with caplog.at_level(logging.WARNING):
        lab.generate(lab.ids(), cache, new=2)
        assert not caplog.records  # its only step made the prompt whole
        cache = lab.cache(prompt_length=40)
        lab.generate(lab.ids(), cache, new=5)
    (said,) = (record.getMessage() for record in caplog.records)
    assert "prompt_length is 40, 31 tokens have arrived" in said
    with pytest.raises(CacheError, match="prompt_length is 40, but only 34 tokens have arrived"):
        cache.kept_slots()


@pytest.mark.parametrize("chunk", [1, 29])
def test_single_tokens_of_a_prompt_are_no_answer(lab, caplog, chunk):
    cache, tokens = lab.cache(prompt_length=30), lab.ids()
    with caplog.at_level(logging.WARNING):
        for start in range(0, 30, chunk):
            lab.run(cache, tokens[:, start : start + chunk])
        lab.run(cache, tokens[:, :1])
    assert not caplog.records


@pytest.mark.parametrize(("selector", "rows"), [("peak", 4), ("accumulated", 4), ("blend-peak", 4), ("echo", 20)])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_selector_that_accumulates_stores_no_queries_of_earlier_chunks(lab, selector, rows, implementation):
    lab.model.set_attn_implementation(implementation)
    tokens = lab.ids()
    tokens[1, :12] = 0  # the first two chunks of this row are padding alone
    mask = (tokens > 0).long()
    whole, cache = lab.cache(f"sparsemm+{selector}", 9), lab.cache(f"sparsemm+{selector}", 9, prompt_length=30)
    lab.run(whole, tokens, mask)
    for start, stop in ((0, 5), (5, 12), (12, 20)):
        lab.run(cache, tokens[:, start:stop], mask[:, :stop])
    assert {layer.chunks.query.shape[2] for layer in cache.ragged} == {rows}
    cache.batch_select_indices(torch.tensor([1, 0]))
    lab.run(cache, tokens[[1, 0], 20:], mask[[1, 0]])
    cache.batch_select_indices(torch.tensor([1, 0]))
    assert torch.equal(torch.stack(cache.budgets()), torch.stack(whole.budgets()))
    for (keys, values), (want_keys, want_values) in zip(contents(cache), contents(whole), strict=True):
        torch.testing.assert_close(keys, want_keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(values, want_values, rtol=1e-4, atol=1e-4)
