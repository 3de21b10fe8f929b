"""One prefill for many caches: the same slots, the same bits, the same tokens as a prefill each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sparsemm
from sparsemm.cache.prefill import prefill
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import BudgetError, CacheError
from sparsemm.policies import method_options
from sparsemm.prompts import build_inputs
from tests.policies.making import ANY_LENGTH, policy_for, serves


def padded(lab):
    """Prompts of 30, 25 and 12 tokens, padded on the left."""
    tokens = lab.ids(batch=3)
    tokens[1, :5], tokens[2, :18] = 0, 0
    return {"input_ids": tokens, "attention_mask": (tokens > 0).long()}


def same_bits(one, other):
    assert one.get_seq_length() == other.get_seq_length()
    for a, b in zip(one.ragged, other.ragged, strict=True):
        assert torch.equal(a.slots, b.slots) and a.tokens == b.tokens and a.barrier == b.barrier
        for name in (*a.slab.BUFFERS, "starts", "lengths"):
            assert torch.equal(getattr(a.slab, name), getattr(b.slab, name)), name


@pytest.mark.parametrize("method", ANY_LENGTH)
@pytest.mark.parametrize("options", [{}, {"storage": "int8"}, {"recompress": True}, {"mode": "paper"}], ids=str)
def test_a_cache_is_what_a_forward_of_its_own_leaves(lab, method, options):
    if "mode" in options and "mode" not in method_options(method):
        pytest.skip("the method has no mode")
    if not serves(method, **options):
        pytest.skip("the cache refuses it")
    inputs = padded(lab)
    start = prefill(lab.model, inputs, None)
    shared = start.compress(method, 9, lab.scores, window=4, **options)
    own = lab.cache(method, 9, **options)
    out = lab.generate(inputs["input_ids"], own, 1, return_dict_in_generate=True, output_logits=True)
    same_bits(shared, own)
    assert torch.equal(start.logits, out.logits[0]) and torch.equal(start.tokens, out.sequences)


@pytest.mark.parametrize("method", ANY_LENGTH)
@pytest.mark.parametrize("options", [{}, {"max_new_tokens": 12}, {"hold_budget": True}], ids=str)
def test_tokens_are_those_of_separate_runs(lab, method, options):
    if (method == "full" and "hold_budget" in options) or not serves(method, **options):
        pytest.skip("the cache refuses it")
    inputs = padded(lab)
    start = prefill(lab.model, inputs, None)
    cache = start.compress(method, 9, lab.scores, window=4, **options)
    want = lab.generate(inputs["input_ids"], lab.cache(method, 9, **options))
    assert torch.equal(start.generate(cache, 12), want)


def test_rows_that_end_at_different_tokens(lab, monkeypatch):
    inputs = padded(lab)
    free = lab.generate(inputs["input_ids"], lab.cache())
    for ends in ([free[0, 30]], [free[0, 30], free[1, 33]], list(free[:, 30])):
        monkeypatch.setattr(lab.model.generation_config, "eos_token_id", [int(token) for token in ends])
        start = prefill(lab.model, inputs, 4)
        want = lab.generate(inputs["input_ids"], lab.cache())
        assert torch.equal(start.generate(start.compress("snapkv", 9, window=4), 12), want)
        assert torch.equal(start.generate(start.compress("snapkv", 9, window=4), 1), want[:, :31])


@pytest.mark.parametrize("left", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("a_round", [1, 3, 16])
@pytest.mark.parametrize("options", [{}, {"max_new_tokens": 12}, {"hold_budget": True}, {"storage": "int8"}], ids=str)
def test_rows_that_have_ended_leave_the_batch(lab, monkeypatch, left, a_round, options):
    inputs = padded(lab)
    free = lab.generate(inputs["input_ids"], lab.cache(**options))
    monkeypatch.setattr(lab.model.generation_config, "eos_token_id", [int(free[0, 30]), int(free[1, 33])])
    monkeypatch.setattr("sparsemm.cache.generation.COMPACT_BELOW", left)
    monkeypatch.setattr("sparsemm.cache.generation.ROUND_TOKENS", a_round)
    want = lab.generate(inputs["input_ids"], lab.cache(**options))
    cache = lab.cache(**options)
    for start in (prefill(lab.model, inputs, 4), prefill(lab.model, inputs, cache=cache)):
        held = start.compress("snapkv", 9, window=4, **options) if start.rows else cache
        assert torch.equal(start.generate(held, 12), want)
        assert (len(held.budgets()[0]) == 3) == (left == 0)


def test_a_prefill_for_one_cache_makes_no_other(lab):
    start = prefill(lab.model, padded(lab), cache=lab.cache())
    with pytest.raises(CacheError, match="this prefill was for one cache"):
        start.compress("snapkv", 9, window=4)


@pytest.mark.parametrize("name", ["tiny-llava-next-vicuna", "tiny-qwen2-vl"])
def test_pages_in_every_family(tiny, name):
    """Images of two sizes in one batch; another prompt runs in between, as the families' position state would see."""
    model, processor = tiny(name)
    records = [draw_record("evaluation", 3, index, PageStyle()) for index in range(2)]
    images = [[record.image] for record in records]
    images[1] = [images[1][0].crop((0, 0, images[1][0].width, images[1][0].height // 2))]
    inputs = build_inputs(processor, images, ["Read the page."] * 2)
    assert not bool(inputs["attention_mask"].all())
    with torch.inference_mode():
        start = prefill(model, inputs, 4)
        prefill(model, build_inputs(processor, images[1:], ["Read it."]), 4)
        layers, heads = model.config.get_text_config().num_hidden_layers, start.compress("full").budgets()[0].shape[1]
        scores = np.random.default_rng(0).random((layers, heads))
        for method in ("full", "sparsemm", "adakv"):
            options = dict(scores=scores, window=4)
            got = start.generate(start.compress(method, 12, **options), 16)
            cache = sparsemm.compressed_cache(model, method, 12, **options)
            want = model.generate(**inputs, past_key_values=cache, do_sample=False, max_new_tokens=16)
            assert torch.equal(got, want)


def test_sliding_layers_keep_their_own(lab):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(**lab.sizes | {"head_dim": 8, "sliding_window": 6, "layer_types": KINDS})
    model = Gemma3ForCausalLM._from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        start = prefill(model, {"input_ids": lab.ids()}, 4)
        for budget in (9, 12, 9):  # a third time: the first did not write into what it was given
            cache = sparsemm.compressed_cache(model, "snapkv", budget, window=4)
            want = model.generate(lab.ids(), past_key_values=cache, do_sample=False, max_new_tokens=12)
            assert torch.equal(start.generate(start.compress("snapkv", budget, window=4), 12), want)


KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


def test_rows_leave_sliding_layers_too(lab, monkeypatch):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(**lab.sizes | {"head_dim": 8, "sliding_window": 6, "layer_types": KINDS})
    model, ids = Gemma3ForCausalLM._from_config(config, dtype=torch.float32).eval(), lab.ids(batch=3)
    with torch.no_grad():
        free = model.generate(
            ids, past_key_values=sparsemm.compressed_cache(model, "full"), do_sample=False, max_new_tokens=12
        )
        monkeypatch.setattr(model.generation_config, "eos_token_id", [int(free[0, 31]), int(free[1, 34])])
        monkeypatch.setattr("sparsemm.cache.generation.ROUND_TOKENS", 2)
        cache = sparsemm.compressed_cache(model, "snapkv", 9, window=4)
        want = model.generate(ids, past_key_values=cache, do_sample=False, max_new_tokens=12)
        start = prefill(model, {"input_ids": ids}, 4)
        cache = start.compress("snapkv", 9, window=4)
        assert torch.equal(start.generate(cache, 12), want)
        assert len(cache.budgets()[0]) < 3 and len(cache.layers[0].keys) < 3


def test_settings_that_count_from_a_call_are_refused(lab, monkeypatch):
    for name in ("forced_eos_token_id", "min_new_tokens"):
        monkeypatch.setattr(lab.model.generation_config, name, 3, raising=False)
        with pytest.raises(CacheError, match=rf"{name} counts .*set {name} to None"):
            prefill(lab.model, padded(lab), 4)
        monkeypatch.setattr(lab.model.generation_config, name, None)


def test_a_ready_policy_stands_for_method_budget_and_scores(lab):
    start = prefill(lab.model, padded(lab), 4)
    policy = policy_for("sparsemm", lab.shape[0], lab.shape[2], 9, 4, scores=lab.scores)
    same_bits(start.compress(policy), start.compress("sparsemm", 9, lab.scores, window=4))
    with pytest.raises(BudgetError, match="the policy is for"):
        start.compress(policy_for("snapkv", 1, 1, 9, 4))
    with pytest.raises(BudgetError, match="needs a budget"):
        start.compress("snapkv")


def test_what_was_not_kept_cannot_observe(lab):
    start = prefill(lab.model, padded(lab), 4)
    for method, window in (("snapkv", 5), ("h2o", 4)):
        with pytest.raises(CacheError, match="observes"):
            start.compress(method, 9, window=window)
    with pytest.raises(CacheError, match="prompt_length"):
        start.compress("snapkv", 9, window=4, prompt_length=12)
    start.compress("full", window=32)


def test_padding_on_the_right_is_refused(lab):
    inputs = {name: value.flip(-1) for name, value in padded(lab).items()}
    with pytest.raises(CacheError, match="pad on the left"):
        prefill(lab.model, inputs, 4)
    assert not lab.model._forward_pre_hooks  # nothing stays behind
