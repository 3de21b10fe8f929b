"""Several caches that decode as one batch say what each says alone; what does not go together is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from sparsemm.cache.joining import join
from sparsemm.cache.prefill import generate_together, prefill
from sparsemm.errors import CacheError
from sparsemm.policies.peak import Peak
from tests.cache.test_prefill import KINDS, padded
from tests.policies.making import ANY_LENGTH


def answers(lab, start, caches, new=12):
    return [one[:, start.length :].tolist() for one in generate_together([start] * len(caches), caches, new)]


@pytest.mark.parametrize("left", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("options", [{}, {"max_new_tokens": 12}, {"storage": "int8"}], ids=str)
def test_every_method_says_what_it_says_alone(lab, monkeypatch, options, left):
    """Rows of all methods end at different tokens and leave the batch, also those of methods that differ by row."""
    inputs = padded(lab)
    free = lab.generate(inputs["input_ids"], lab.cache())
    monkeypatch.setattr(lab.model.generation_config, "eos_token_id", [int(free[0, 30]), int(free[1, 33])])
    monkeypatch.setattr("sparsemm.cache.generation.COMPACT_BELOW", left)
    monkeypatch.setattr("sparsemm.cache.generation.ROUND_TOKENS", 2)
    start = prefill(lab.model, inputs, None)

    def caches():
        return [start.compress(method, 9, lab.scores, window=4, **options) for method in ANY_LENGTH]

    alone = [answers(lab, start, [cache])[0] for cache in caches()]
    assert answers(lab, start, caches()) == alone
    assert len({str(one) for one in alone}) > 2 and len({len(one[0]) for one in alone}) > 1


@pytest.mark.parametrize("selector", ["snapkv", "tova", "peak"])
def test_a_budget_that_holds_goes_on_holding(lab, selector):
    methods = [f"{policy}+{selector}" for policy in ("snapkv", "sparsemm", "adakv", "pyramidkv")]
    start = prefill(lab.model, padded(lab), None)

    def caches():
        return [start.compress(one, 9, lab.scores, window=4, hold_budget=True) for one in methods]

    alone = [answers(lab, start, [cache])[0] for cache in caches()]
    held = caches()
    kept = [cache.kept_slots() for cache in held]
    assert answers(lab, start, held) == alone
    assert torch.equal(held[0].kept_slots(), torch.cat(kept))


def test_bytes_and_slots_are_those_of_all(lab):
    start = prefill(lab.model, padded(lab), None)
    caches = [start.compress(method, 9, lab.scores, window=4) for method in ("full", "sparsemm", "snapkv")]
    kept, allocated = [cache.kept_bytes() for cache in caches], [cache.slab_bytes() for cache in caches]
    slots = [cache.budgets() for cache in caches]
    one = join(caches)
    assert one is caches[0] and one.kept_bytes() == sum(kept) and one.slab_bytes() == sum(allocated)
    for layer, each in zip(one.budgets(), zip(*slots, strict=True), strict=True):
        assert torch.equal(layer, torch.cat(each))
    assert one.summary().layers and caches[1].get_seq_length() == 0  # the others are empty
    assert join([one]) is one


def test_a_joined_cache_can_be_cropped_where_no_row_was_padded(lab):
    start = prefill(lab.model, padded(lab), None)

    def extended(mask):
        cache = start.compress("snapkv", 9, window=4)
        with torch.no_grad():
            lab.run(cache, lab.ids(batch=3, length=2), torch.cat([padded(lab)["attention_mask"], mask], dim=1))
        return cache

    whole, gap = torch.ones(3, 2, dtype=torch.int64), torch.tensor([[0, 1], [1, 1], [1, 1]])
    one = join([extended(whole), extended(whole)])
    one.crop(-1)
    assert one.get_seq_length() == 31
    with pytest.raises(CacheError, match="padding"):
        join([extended(whole), extended(gap)]).crop(-1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"storage": "int8"}),
        ({"storage": "int8"}, {"storage": "fp8"}),
        ({}, {"max_new_tokens": 12}),
        ({}, {"hold_budget": True}),
        ({"hold_budget": True}, {"hold_budget": True, "window": 5}),
        ({"hold_budget": True}, {"hold_budget": True, "selector": Peak()}),
    ],
    ids=str,
)
def test_caches_that_differ_are_refused_and_stay(lab, one, other):
    start = prefill(lab.model, padded(lab), None)
    caches = [start.compress("snapkv", 9, **{"window": 4} | each) for each in (one, other)]
    kept = [cache.kept_bytes() for cache in caches]
    with pytest.raises(CacheError, match="join those that are alike"):
        join(caches)
    assert [cache.kept_bytes() for cache in caches] == kept


def test_layers_with_other_states_and_empty_caches_are_refused(lab):
    config = Gemma3TextConfig(**lab.sizes | {"head_dim": 8, "sliding_window": 6, "layer_types": KINDS})
    model = Gemma3ForCausalLM._from_config(config, dtype=torch.float32).eval()
    start = prefill(model, {"input_ids": lab.ids()}, 4)
    with pytest.raises(CacheError, match="sliding-window"):
        join([start.compress("snapkv", 9, window=4) for _ in range(2)])
    with pytest.raises(CacheError, match="empty"):
        join([lab.cache(), lab.cache()])


def test_one_that_is_longer_is_refused(lab):
    prompts = [prefill(lab.model, {"input_ids": lab.ids(length=length)}, 4) for length in (20, 30)]
    with pytest.raises(CacheError, match="length"):
        join([start.compress("snapkv", 9, window=4) for start in prompts])


def test_no_warning_is_about_a_method_that_is_gone(lab, caplog):
    start = prefill(lab.model, padded(lab), None)
    answers(lab, start, [start.compress("snapkv", 9, window=4), start.compress("full")])
    assert not caplog.records
