"""Many variants from one prefill answer as each of them does alone."""

from __future__ import annotations

import numpy as np
import pytest

from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import BudgetError
from sparsemm.evaluate.model import Variant, answer, slot_bytes
from sparsemm.policies import get_policy

RECORDS = [draw_record("evaluation", 0, index, PageStyle()) for index in range(3)]
IMAGES = [[record.image] for record in RECORDS]
PROMPTS = ["Read the page.", "What is date?", "What follows fee?"]


def ask(tiny, variants, name="tiny-qwen2-vl", rows=slice(None)):
    return list(answer(*tiny(name), IMAGES[rows], PROMPTS[rows], variants, 12))


def scores(tiny, seed):
    text = tiny("tiny-qwen2-vl")[0].config.get_text_config()
    return np.random.default_rng(seed).random((text.num_hidden_layers, text.num_attention_heads))


def test_variants_together_say_what_each_says_alone(tiny):
    variants = [
        Variant(),
        Variant("sparsemm", 12, scores(tiny, 0), window=4),
        Variant("sparsemm", 12, scores(tiny, 1), window=4, rho=0.5, mode="paper"),
        Variant("snapkv", 16, window=8, pooling_kernel=3),
        Variant("random", 12, window=4, seed=3),
        Variant("h2o", 12, window=4),
    ]
    together = ask(tiny, variants)
    assert together == [ask(tiny, [variant])[0] for variant in variants]
    assert len({tuple(one.texts) for one in together}) > 1  # the methods do not all agree, so that equality says much


def test_a_policy_of_ones_own_is_a_method(tiny):
    model, _ = tiny("tiny-qwen2-vl")
    text = model.config.get_text_config()
    policy = get_policy("snapkv", text.num_hidden_layers, text.num_key_value_heads, 12, 4)
    own, named = ask(tiny, [Variant(policy), Variant("snapkv", 12, window=4)])
    assert own == named and own.kept == [12 * policy.num_layers * policy.num_kv_heads] * 3


def test_slot_bytes_are_those_of_a_cache(tiny):
    import sparsemm

    model, processor = tiny("tiny-qwen2-vl")
    inputs = processor.tokenizer(["Read the page."], return_tensors="pt")
    cache = sparsemm.compressed_cache(model, "full")
    model(**inputs, past_key_values=cache)
    assert cache.kept_bytes() == int(cache.kept_slots().sum()) * slot_bytes(model)


def test_an_impossible_variant_is_refused_before_the_model_runs(tiny):
    with pytest.raises(BudgetError, match="head scores"):
        ask(tiny, [Variant(), Variant("sparsemm", 12, window=4)])
