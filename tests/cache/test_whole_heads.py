"""Methods that keep the whole prompt in some heads: what they keep, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsemm.cache.prefill import prefill
from sparsemm.errors import BudgetError
from sparsemm.policies import METHODS, make_policy, policy_class
from tests.cache.reading import read_padded
from tests.cache.test_device import prompt
from tests.policies.making import policy_for

L, H, B, W = 4, 3, 14, 4


def test_duo_gives_whole_prompts_to_the_best_heads():
    scores = np.arange(L * H, dtype=float).reshape(L, H)
    slots = policy_for("duo", L, H, B, W, scores).matrix(30)
    # 12 * 14 slots less 8 for every head leave 72, and a full head takes 22 more: three fit, six slots are left over.
    assert slots.ravel()[-3:].tolist() == [30] * 3 and sorted(slots.ravel()[:-3]) == [8] * 3 + [9] * 6
    assert (policy_for("duo", L, H, B, W, scores).matrix(B) == B).all()
    for length in range(B, 70):
        assert policy_for("duo", L, H, B, W, scores, first=0).matrix(length).sum() == L * H * B


def test_a_prompt_too_long_for_the_budget_is_refused():
    with pytest.raises(BudgetError, match="full head of 200 tokens does not fit into a budget of 14 slots.*72 slots"):
        policy_for("duo", L, H, B, W, np.ones((L, H))).matrix(200)
    with pytest.raises(BudgetError, match="full head"):
        policy_for("duo", L, H, W, W, np.ones((L, H)))
    with pytest.raises(BudgetError, match="first is -1"):
        policy_for("duo", L, H, B, W, np.ones((L, H)), first=-1)


def test_headkv_refuses_a_beta_below_one():
    with pytest.raises(BudgetError, match="beta is 0.5"):
        make_policy("headkv", B, np.ones((L, H)), window=W, beta=0.5)


@pytest.mark.parametrize("method", [name for name in METHODS if policy_class(name).whole_heads])
@pytest.mark.parametrize("selector", ["", "+peak", "+critical"])
def test_padded_batches_answer_within_the_budget(lab, method, selector):
    B = {"duo": 14, "fastv": 20}[method]
    tokens = lab.ids()
    tokens[0, :7] = 0
    cache = lab.cache(method + selector, B)
    assert lab.generate(tokens, cache, 6).shape == (2, 36)
    budgets = torch.stack(cache.budgets())  # (L, B, Hkv)
    assert budgets.sum(dim=(0, 2)).tolist() == [lab.heads * B] * 2
    assert budgets[:, 0].max() == 23 and budgets[:, 1].max() == 30
    alone = lab.cache(method + selector, B)
    lab.run(alone, tokens[:1, 7:])
    assert torch.equal(torch.stack(alone.budgets())[:, 0], budgets[:, 0])
    with pytest.raises(BudgetError, match="does not fit|too few"):
        lab.run(lab.cache(method + selector, B), lab.ids(length=400))


def test_fastv_charges_its_whole_layers_to_the_others():
    slots = policy_for("fastv", L, H, 20, W).schedule(30)
    assert (slots[:2] == 30).all() and (slots[2:] == 10).all()
    for length in range(1, 35):
        assert policy_for("fastv", L, H, 20, W).schedule(length).sum() == L * H * min(length, 20)
    with pytest.raises(BudgetError, match="2 whole layers of 40 tokens leave too few of 20 slots"):
        policy_for("fastv", L, H, 20, W).schedule(40)
    with pytest.raises(BudgetError, match="whole layers"):
        policy_for("fastv", 2, H, 20, W).schedule(21)


def test_fastv_keeps_what_the_last_row_of_the_second_layer_looks_at(tiny):
    model, processor = tiny("tiny-qwen2-vl")
    inputs = prompt(processor)
    budget, window = 48, 4
    start = prefill(model, inputs, None)
    cache = start.compress("fastv", budget, window=window)
    full = start.compress("full")
    length, real = inputs["input_ids"].shape[1], inputs["attention_mask"].bool()
    image = start.image_mask
    query, _, _, _, scaling = start._cache.ragged[1].arguments  # post-RoPE, as the second layer has seen it
    keys, _, valid = read_padded(full.ragged[1].slab)
    for row in range(2):
        count = int(real[row].sum())
        group = query.shape[1] // keys.shape[1]
        rows = [
            torch.softmax(keys[row, head // group][valid[row, head // group]] @ query[row, head, -1] * scaling, 0)
            for head in range(query.shape[1])
        ]
        looked = sum(rows) / len(rows)
        text = ~image[row, length - count :]
        order = sorted(range(count), key=lambda j: (not text[j], -float(looked[j]), j))  # noqa: B023
        for layer in range(2, len(cache.ragged)):
            held, _, there = read_padded(cache.ragged[layer].slab)
            whole, _, every = read_padded(full.ragged[layer].slab)
            for head in range(keys.shape[1]):
                slots = int(cache.ragged[layer].slots[row, head])
                newest = range(count - window, count)
                want = sorted([*[j for j in order if j not in newest][: slots - window], *newest])
                assert torch.equal(held[row, head][there[row, head]], whole[row, head][every[row, head]][want])
