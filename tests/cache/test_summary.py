"""What a cache says it kept, and the line of the log where a method that compresses kept everything."""

from __future__ import annotations

import logging
from copy import deepcopy

import pytest
import torch

import sparsemm
from sparsemm.errors import CacheError
from sparsemm.policies import policy_class
from sparsemm.policies.snapkv import SnapKV
from tests.policies.making import ANY_LENGTH

LAYERS, KV_HEADS, DIM = 4, 3, 8


@pytest.mark.parametrize("storage", ["model", "int8"])
@pytest.mark.parametrize("method", ANY_LENGTH)
def test_it_says_what_is_held_of_what(lab, method, storage):
    cache = lab.cache(method, 9, storage=storage)
    with pytest.raises(CacheError, match="the cache is empty"):
        cache.summary()
    tokens = lab.ids(length=30)
    mask = torch.ones_like(tokens)
    mask[1, :7] = 0
    lab.run(cache, tokens, mask)
    found = cache.summary()
    kept = 9 if policy_class(method).compresses else 30
    assert found.seen == (30 * LAYERS * KV_HEADS, 23 * LAYERS * KV_HEADS)
    assert found.kept == (kept * LAYERS * KV_HEADS, min(kept, 23) * LAYERS * KV_HEADS)
    assert found.kept == tuple(cache.kept_slots().tolist()) and found.kept_bytes == cache.kept_bytes()
    assert found.full_bytes == sum(found.seen) * 2 * DIM * 4
    assert sum(one.allocated_bytes for one in found.layers) == cache.slab_bytes()
    assert found.rows_compressed == (policy_class(method).compresses,) * 2
    for one, slots in zip(found.layers, cache.budgets(), strict=True):
        assert one.compressed and one.kept == tuple(slots.sum(-1).tolist())
    text = str(found)
    assert len(text.splitlines()) == 1 + LAYERS and f"{found.kept_bytes} of {found.full_bytes} bytes" in text


@pytest.mark.parametrize("options", [{}, {"recompress": True}, {"hold_budget": True}], ids=str)
def test_later_tokens_are_counted_and_evicted_ones_too(lab, options):
    cache, tokens = lab.cache("snapkv", 9, **options), lab.ids(length=40)
    lab.run(cache, tokens[:, :30])
    for at in range(30, 34):
        lab.run(cache, tokens[:, at : at + 1])
    lab.run(cache, tokens[:, 34:])
    found = cache.summary()
    assert found.seen == (40 * LAYERS * KV_HEADS,) * 2
    assert found.kept == ((9 if options else 19) * LAYERS * KV_HEADS,) * 2
    cache.batch_select_indices(torch.tensor([1]))
    assert cache.summary().seen == found.seen[1:] and deepcopy(cache).summary() == cache.summary()


def test_a_row_no_longer_than_the_budget_is_seen_to_be_whole(lab, caplog):
    cache, tokens = lab.cache("snapkv", 9), lab.ids(length=30)
    mask = torch.ones_like(tokens)
    mask[0, :22] = 0
    lab.generate(tokens, cache, attention_mask=mask, new=3)
    assert cache.summary().rows_compressed == (False, True)
    assert "1 of 2 batch rows compressed" in str(cache.summary()) and not caplog.records


def test_layers_of_transformers_are_told_apart(tiny_gemma, lab):
    cache = type(lab)(tiny_gemma).cache("snapkv", 9, scores=None)
    type(lab)(tiny_gemma).run(cache, lab.ids(length=30))
    found = cache.summary()
    assert [one.compressed for one in found.layers] == [False, True]
    assert found.kept == (9 * KV_HEADS,) * 2 and found.kept_bytes == cache.kept_bytes()


@pytest.fixture
def tiny_gemma(lab):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention", "full_attention"]
    sizes = lab.sizes | {"num_hidden_layers": 2, "head_dim": 8, "sliding_window": 6, "layer_types": kinds}
    return Gemma3ForCausalLM._from_config(Gemma3TextConfig(**sizes), dtype=torch.float32).eval()


class Forgetful(SnapKV):
    """Forgets to evict."""

    def slots(self, layer, lengths, observed):
        return self.everything(lengths)


def logged(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "sparsemm.cache.compressed"]


def test_a_method_that_keeps_a_prompt_beyond_its_budget_is_told_once(lab, caplog):
    cache = sparsemm.compressed_cache(lab.model, Forgetful(budget=9, window=4))
    with caplog.at_level(logging.WARNING):
        lab.generate(lab.ids(length=30), cache)
    assert logged(caplog) == [
        "sparsemm: Forgetful kept all of 2 of 2 prompts (up to 30 tokens), though its budget is 9"
    ]
    assert cache.summary().rows_compressed == (False, False)


@pytest.mark.parametrize(
    ("options", "count"), [({}, 1), ({"recompress": True}, 0), ({"prompt_length": 30}, 0), ({"method": "full"}, 0)]
)
def test_a_prompt_in_chunks_of_which_the_first_fits_the_budget_is_told_once(lab, caplog, options, count):
    cache, tokens = lab.cache(**{"method": "snapkv", "budget": 12} | options), lab.ids(length=30)
    with caplog.at_level(logging.WARNING):
        for part in tokens.split(10, dim=1):
            lab.run(cache, part)
        lab.run(cache, tokens[:, :1])
    assert len(logged(caplog)) == count
    if count:
        assert "the prompt had 10 tokens, no more than the budget 12, and 10 later ones are kept" in logged(caplog)[0]


@pytest.mark.parametrize("method", ANY_LENGTH)
def test_who_compresses_is_not_told_anything(lab, caplog, method):
    with caplog.at_level(logging.WARNING):
        cache = lab.cache(method, 9)
        lab.generate(lab.ids(length=30), cache)
        lab.run(cache, lab.ids(length=5))
        lab.generate(lab.ids(length=5), lab.cache(method, 12))
    assert logged(caplog) == []
