"""Every row of a batch with a policy of its own."""

from __future__ import annotations

import pytest
import torch

import sparsemm
from sparsemm.cache.served import shape_of
from sparsemm.errors import BudgetError
from sparsemm.policies.policy import ModelShape
from sparsemm.policies.random_heads import RandomHeads, draw
from tests.cache.test_device import prompt

SHAPE = ModelShape.plain(3, 4, 4)


def random_heads(seed):
    return RandomHeads(budget=12, window=4, seed=seed)


def test_each_row_gets_what_its_own_policy_gives():
    policy = random_heads(5).for_pages(SHAPE, [0, 7, 0])
    slots = policy.slots(1, [90, 90, 40], None)
    for row, (number, length) in enumerate([(0, 90), (7, 90), (0, 40)]):
        assert (slots[row] == random_heads(draw(5, number)).for_model(SHAPE).slots(1, [length], None)[0]).all()
    assert (policy.num_layers, policy.num_kv_heads, policy.budget, policy.window) == (3, 4, 12, 4)
    assert sum(policy.slots(layer, [90] * 3, None)[1].sum() for layer in range(3)) == 12 * 3 * 4


def test_pages_have_seeds_of_their_own_whatever_the_batch():
    assert len({draw(seed, page) for seed in range(3) for page in range(50)}) == 150
    assert draw(2, 9) == draw(2, 9)


def test_another_number_of_rows_and_none_are_refused():
    policy = random_heads(0).for_pages(SHAPE, [1, 2])
    with pytest.raises(BudgetError, match="2 policies for a batch of 3 rows"):
        policy.slots(0, [9, 9, 9], None)
    with pytest.raises(BudgetError, match="no row"):
        random_heads(0).for_pages(SHAPE, [])


def test_a_batch_says_what_its_rows_say_alone(tiny):
    model, processor = tiny("tiny-qwen2-vl")
    inputs = prompt(processor)
    shape = shape_of(model)

    def said(given, policy):
        cache = sparsemm.compressed_cache(model, policy)
        out = model.generate(**given, past_key_values=cache, do_sample=False, max_new_tokens=8)
        return out[:, given["input_ids"].shape[1] :], cache.kept_slots()

    together, kept = said(inputs, random_heads(0).for_pages(shape, [3, 8]))
    for row, number in enumerate((3, 8)):
        mask = inputs["attention_mask"][row].bool()
        alone = {"input_ids": inputs["input_ids"][row : row + 1, mask], "attention_mask": mask[mask][None].long()}
        grid = inputs["image_grid_thw"]
        patches = grid.prod(-1).tolist()
        start = sum(patches[:row])
        alone |= {
            "pixel_values": inputs["pixel_values"][start : start + patches[row]],
            "image_grid_thw": grid[row : row + 1],
        }
        alone |= (
            {"mm_token_type_ids": inputs["mm_token_type_ids"][row : row + 1, mask]}
            if "mm_token_type_ids" in inputs
            else {}
        )
        tokens, slots = said(alone, random_heads(draw(0, number)).for_model(shape))
        assert torch.equal(tokens[0], together[row])
