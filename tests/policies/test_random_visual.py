"""Random image tokens: all text first, one draw per page and seed, one set for all heads or one for each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsemm.errors import BudgetError
from sparsemm.policies import is_drawn, make_policy
from sparsemm.policies.per_row import PerRow
from sparsemm.policies.policy import ModelShape
from sparsemm.policies.random_visual import RandomVisual, RandomVisualPerHead
from sparsemm.policies.selector import select
from tests.policies.prompts import prompt_of

LENGTH = 19
IMAGE = torch.zeros(2, LENGTH, dtype=torch.bool)
IMAGE[:, 7:15] = True


def kept(selector, slots, prompt=None, **changes):
    prompt = replace(prompt_of(1) if prompt is None else prompt, image=IMAGE, **changes)
    counts = torch.full((2, 3), slots, dtype=torch.int64)
    return select(selector.rate(prompt), prompt.valid, counts, prompt.window)


def test_text_is_kept_and_image_tokens_are_those_of_the_draw():
    keep = kept(RandomVisual(), 14)
    real = prompt_of(1).valid
    for row in range(2):
        assert (keep[row, 0] == keep[row]).all()  # one set for all heads
        assert keep[row, 0][real[row] & ~IMAGE[row]].all()
    assert keep.sum(-1).tolist() == [[14] * 3, [13] * 3]  # 11 of text and 3 of 8; the second row is shorter
    own = kept(RandomVisualPerHead(), 14)
    assert own.sum(-1).tolist() == keep.sum(-1).tolist() and not (own[0, 0] == own[0]).all()
    assert own[0][:, real[0] & ~IMAGE[0]].all()
    assert torch.equal(kept(RandomVisual(), 14, layer=3), keep)
    assert not torch.equal(kept(RandomVisualPerHead(), 14, layer=3), own)


def test_every_page_and_seed_has_a_draw_of_its_own_whatever_the_batch():
    draws = {
        (seed, page): kept(RandomVisual(seed=seed).for_pages([page, 99]), 15)[0, 0].tolist()
        for seed in range(3)
        for page in range(20)
    }
    assert len({tuple(one) for one in draws.values()}) > 30  # of 70 sets of 4 among 8
    assert kept(RandomVisual(seed=2).for_pages([99, 7]), 9)[1, 0].any()
    swapped = replace(prompt_of(1), valid=prompt_of(1).valid[:1].expand(2, -1))
    one, other = (kept(RandomVisual().for_pages(pages), 15, swapped) for pages in ([4, 9], [9, 4]))
    assert torch.equal(one[0], other[1]) and torch.equal(one[1], other[0])


def test_each_image_token_is_as_likely_as_another():
    counts = sum(kept(RandomVisual(seed=seed), 15)[0, 0].long() for seed in range(400))
    assert (counts[7:15] - 200).abs().max() < 60  # 6 standard deviations
    assert (counts[:7] == 400).all() and (counts[15:] == 400).all()


def test_text_that_does_not_fit_keeps_its_window_and_its_beginning():
    assert kept(RandomVisual(), 7)[0, 0].nonzero().flatten().tolist() == [0, 1, 2, 15, 16, 17, 18]


def test_the_evaluation_draws_for_pages():
    shape = ModelShape.plain(3, 3, 3)
    assert is_drawn("snapkv+random-visual") and is_drawn("random") and not is_drawn("snapkv+peak")
    policy = make_policy("snapkv+random-visual", 9, window=4, seed=5).for_pages(shape, [3, 8])
    assert policy.selector == RandomVisual(seed=5).for_pages([3, 8])
    both = make_policy("random+random-visual", 9, window=4, seed=5).for_pages(shape, [3, 8])
    assert isinstance(both, PerRow) and both.selector == policy.selector
    other = make_policy("random+random-visual", 9, window=4, seed=6)
    assert other.seed == 6 and other.selector.seed == 6  # one option of two
    with pytest.raises(BudgetError, match="seed is -1"):
        make_policy("snapkv+random-visual", 9, window=4, seed=-1)
