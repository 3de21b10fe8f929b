"""Many variants from one prefill answer as each of them does alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import sparsemm
from sparsemm.cache.prefill import prefill
from sparsemm.cache.served import shape_of
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import BudgetError, CacheError
from sparsemm.evaluate import answers
from sparsemm.evaluate.answers import Reading, Variant, answer, make_batch
from sparsemm.evaluate.questions import Question
from sparsemm.policies import make_policy

RECORDS = [draw_record("evaluation", 0, index, PageStyle()) for index in range(3)]
PROMPTS = ["Read the page.", "What is date?", "What follows fee?"]
QUESTIONS = [Question(p, lambda record=r: [record.image]) for p, r in zip(PROMPTS, RECORDS, strict=True)]


def ask(tiny, policies, name="tiny-qwen2-vl"):
    model, processor = tiny(name)
    variants = {str(i): Variant(policy) for i, policy in enumerate(policies)}
    return list(answer(model, make_batch(processor, QUESTIONS, range(3)), variants, 12).values())


def scores(tiny, seed):
    text = tiny("tiny-qwen2-vl")[0].config.get_text_config()
    return np.random.default_rng(seed).random((text.num_hidden_layers, text.num_attention_heads))


def test_policies_together_say_what_each_says_alone(tiny):
    policies = [
        make_policy("full"),
        make_policy("sparsemm", 12, scores(tiny, 0), window=4),
        make_policy("sparsemm", 12, scores(tiny, 1), window=4, rho=0.5, mode="paper"),
        make_policy("snapkv", 16, window=8, pooling_kernel=3),
        make_policy("random", 12, window=4, seed=3),
        make_policy("h2o", 12, window=4),
    ]
    together = ask(tiny, policies)
    assert together == [ask(tiny, [policy])[0] for policy in policies]
    assert len({str(one.tokens) for one in together}) > 1  # the methods do not all agree, so that equality says much


@pytest.mark.parametrize("cut", [None, -3], ids=["whole", "cut"])
@pytest.mark.parametrize(
    ("rows", "sizes"), [(0, [1] * 8), (6, [2, 2, 1, 2, 1]), (12, [4, 1, 2, 1]), (1 << 20, [5, 2, 1])]
)
def test_variants_that_decode_together_say_what_each_says_alone(tiny, monkeypatch, cut, rows, sizes):
    """Some are refused, and their group goes on without them. Those that store or evict in another way stay apart."""
    model, processor = tiny("tiny-qwen2-vl")
    batch = make_batch(processor, QUESTIONS, range(3))
    batch = replace(batch, cut=None if cut is None else batch.inputs["input_ids"].shape[1] + cut, most_rows=rows)
    budgets = {"full": 12, "sparsemm": 12, "random": 12, "snapkv": 12, "duo": 9, "adakv": 12, "fastv": 12}
    variants = {one: Variant(make_policy(one, b, scores(tiny, 0), window=4)) for one, b in budgets.items()}
    variants |= {f"{one}, 8 bits": replace(variants[one], storage="int8") for one in ("snapkv", "sparsemm")}
    variants["snapkv, held"] = replace(variants["snapkv"], hold_budget=True)
    alone = {name: answer(model, batch, {name: one}, 12)[name] for name, one in variants.items()}
    together = []
    real = answers.generate_together
    monkeypatch.setattr(answers, "generate_together", lambda *args: together.append(len(args[1])) or real(*args))
    monkeypatch.setattr(answers, "processes", lambda model: 1)
    assert answer(model, batch, variants, 12) == alone
    assert together == sizes and [name for name, one in alone.items() if one.refused] == ["duo", "fastv"]
    assert len({str(one.tokens) for one in alone.values()}) > 3
    monkeypatch.setattr(answers, "processes", lambda model: 2)
    assert answer(model, batch, variants, 12) == alone


def test_a_policy_that_knows_its_model_says_the_same(tiny):
    model, _ = tiny("tiny-qwen2-vl")
    text = model.config.get_text_config()
    bound = make_policy("snapkv", 12, window=4).for_model(shape_of(model))
    ready, named = ask(tiny, [bound, make_policy("snapkv", 12, window=4)])
    assert ready == named and ready.kept == [12 * text.num_hidden_layers * text.num_key_value_heads] * 3


def test_a_method_whose_budget_is_too_small_is_refused_and_the_others_answer(tiny):
    policies = [make_policy("snapkv", 12, window=4), make_policy("fastv", 12, window=4)]
    answered, refused = ask(tiny, policies)
    assert answered == ask(tiny, policies[:1])[0] and not answered.refused
    assert refused.refused.startswith("2 whole layers of ") and not refused.tokens and refused.kept is None
    assert ask(tiny, policies[1:]) == [refused]


def test_an_impossible_variant_is_refused_before_the_model_runs(tiny):
    with pytest.raises(BudgetError, match="head scores"):
        ask(tiny, [make_policy("full"), make_policy("sparsemm", 12, window=4)])


def test_a_selector_that_needs_a_replay_has_the_models_own_reading_or_is_refused(tiny, monkeypatch):
    model, processor = tiny("tiny-qwen2-vl")
    policy = make_policy("snapkv+kvzip", 12, window=4)
    variants = {"kvzip": Variant(policy), "full": Variant(make_policy("full"))}
    calls = []
    real = answers.replay_attention
    monkeypatch.setattr(answers, "replay_attention", lambda *a: calls.append(a) or real(*a))
    batch = make_batch(processor, QUESTIONS, range(3), Reading("Read the page.", 9))
    replies = answer(model, batch, variants, 12)
    ((_, reading, most, prompts),) = calls  # once for all variants
    assert most == 9 and prompts is batch.inputs
    assert processor.batch_decode(reading["input_ids"])[1].count("Read the page.") == 1
    replay = real(model, reading, 9, prompts)
    cache = sparsemm.compressed_cache(model, policy, replay=replay)
    start = prefill(model, batch.inputs, cache=cache)
    assert start.generate(cache, 12)[:, start.length :].tolist() == replies["kvzip"].tokens
    assert answer(model, batch, {"full": variants["full"]}, 12)["full"] == replies["full"] and len(calls) == 1
    with pytest.raises(CacheError, match="needs a replay"):
        answer(model, make_batch(processor, QUESTIONS, range(3)), variants, 12)
