"""Slots of every method: totals, shapes, and what each one is about."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsemm.errors import BudgetError
from sparsemm.policies import METHODS, make_policy, make_policy_from, method_options, policy_class
from sparsemm.policies.policy import ModelShape
from sparsemm.policies.snapkv import SnapKV
from sparsemm.policies.sparsemm import SparseMM
from sparsemm.policies.streaming import Recency
from sparsemm.policies.window_attention import WindowAttention
from tests.policies.making import ANY_LENGTH, policy_for

L, H, B, W = 4, 3, 10, 3


def test_every_method_is_summed_up_in_its_own_words():
    summaries = {method: policy_class(method).summary for method in METHODS if policy_class(method).compresses}
    assert all(summaries.values()) and len(set(summaries.values())) == len(summaries)
    assert not policy_class("full").summary


def make(method, budget=B, window=W, **options):
    scores = np.arange(L * H, dtype=float).reshape(L, H) if policy_class(method).needs_scores else None
    return policy_for(method, L, H, budget, window, scores=scores, **options)


def slots_of(policy, lengths, seed=0):
    torch.manual_seed(seed)
    longest = max(lengths)
    observed = torch.rand(len(lengths), H, longest, dtype=torch.float32)
    at = torch.arange(longest)
    for row, length in enumerate(lengths):
        observed[row, :, (at < longest - length) | (at >= longest - W)] = float("-inf")
    return np.stack([policy.slots(layer, lengths, observed) for layer in range(L)])


@pytest.mark.parametrize("method", [m for m in ANY_LENGTH if m != "full"])
@pytest.mark.parametrize("lengths", [[40, 11], [11, 400]])
def test_totals_are_exact(method, lengths):
    slots = slots_of(make(method), lengths)
    assert slots.shape == (L, 2, H) and slots.dtype == np.int64
    assert (slots.sum(axis=(0, 2)) == L * H * B).all()
    assert (slots >= W).all() and (slots <= np.array(lengths)[None, :, None]).all()


@pytest.mark.parametrize("method", [m for m in ANY_LENGTH if m != "full"])
def test_totals_are_exact_at_every_length(method):
    policy = make(method)
    for length in range(1, 60):
        slots = slots_of(policy, [length], seed=length)
        assert slots.sum() == L * H * min(B, length)
        assert slots.max() <= length


@pytest.mark.parametrize("method", ANY_LENGTH)
@pytest.mark.parametrize("length", [1, 2, 3, 10])
def test_short_prompts_are_kept_whole(method, length):
    assert (slots_of(make(method), [length]) == length).all()


@pytest.mark.parametrize("method", ANY_LENGTH)
def test_budget_equal_to_the_window_keeps_the_window(method):
    slots = slots_of(make(method, budget=W), [30])
    assert (slots == (30 if method == "full" else W)).all()


def test_pyramid_falls_linearly_with_beta_20():
    policy = make("pyramidkv", budget=203)
    slots = policy.schedule(100_000)
    np.testing.assert_allclose(slots - W, np.linspace(390, 10, L), atol=1)
    assert (np.diff(slots) < 0).all()


def test_pyramid_overflow_flows_to_later_layers():
    slots = make("pyramidkv", budget=20).schedule(24)
    assert slots.sum() == 20 * L and slots.max() == 24


def test_ada_follows_the_concentration_of_scores():
    observed = torch.rand(1, H, 50, dtype=torch.float32)
    observed[0, 1] += 5.0
    observed[..., -W:] = float("-inf")
    got = make("adakv", budget=W + 5).slots(0, [50], observed)[0]
    # All 15 best positions are the middle head's: 0.2 * 5 for everyone, and 0.8 * 15 for it.
    assert got.tolist() == [W + 1, W + 13, W + 1]


def test_adaptive_moves_half_of_a_layers_split_to_the_prompt():
    observed = torch.rand(1, H, 50, dtype=torch.float32)
    observed[0, 0] += 5.0  # the prompt wants the first head, the scores want the last
    observed[..., -W:] = float("-inf")
    static, adaptive = make("sparsemm"), make("sparsemm-adaptive")
    for layer in range(L):
        before, after = (p.slots(layer, [50], observed)[0] for p in (static, adaptive))
        total = before.sum() - W * H
        assert after.sum() == before.sum()
        want = 0.5 * (before - W) + 0.5 * np.array([total, 0, 0])
        assert (np.abs(after - W - want) < 1).all()


def test_sparsemm_follows_the_scores_and_random_follows_the_seed():
    slots = slots_of(make("sparsemm"), [400])[:, 0].ravel()
    assert (np.diff(slots) >= 0).all() and slots[-1] > 2 * slots[0]
    one, other, again = (slots_of(make("random", seed=s), [400]) for s in (0, 1, 0))
    assert (one == again).all() and (one != other).any()


def test_paper_mode_loses_what_a_short_prompt_cannot_hold():
    scores = np.zeros((L, H))
    scores[0, 0] = 1.0
    exact, paper = (policy_for("sparsemm", L, H, B, W, scores=scores, mode=m) for m in ("exact", "paper"))
    assert exact.matrix(20).sum() == L * H * B
    assert paper.matrix(20).sum() < L * H * B


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("best", L, H, B, W), "unknown"),
        (("snapkv", L, H, 2, 3), "window"),
        (("snapkv", L, H, 2, 0), "window"),
        (("snapkv", L, H, 9.0, 3), "whole numbers"),
        (("snapkv", L, H, 9, "3"), "whole numbers"),
        (("sparsemm", L, H, B, W), "SparseMM needs"),
        (("sparsemm-adaptive", L, H, B, W), "Adaptive needs"),
    ],
)
def test_impossible_requests_are_refused(arguments, reason):
    with pytest.raises(BudgetError, match=reason):
        policy_for(*arguments)


def test_impossible_scores_are_refused_before_any_prompt():
    with pytest.raises(BudgetError, match="finite"):
        policy_for("sparsemm", L, H, B, W, scores=np.full((L, H), np.nan))
    with pytest.raises(BudgetError, match="shape"):
        policy_for("sparsemm", L, H, B, W, scores=np.ones((H, L)))
    with pytest.raises(BudgetError, match="rho"):
        policy_for("sparsemm", L, H, B, W, scores=np.ones((L, H)), rho=2.0)
    with pytest.raises(BudgetError, match="rho"):
        policy_for("random", L, H, B, W, rho=2.0)
    with pytest.raises(BudgetError, match="seed is -1"):
        policy_for("random", L, H, B, W, seed=-1)
    with pytest.raises(BudgetError, match="adapt is 1.5"):
        policy_for("sparsemm-adaptive", L, H, B, W, scores=np.ones((L, H)), adapt=1.5)
    values = [("rho", "0.1"), ("rho", np.nan), ("seed", "1"), ("seed", 1.0)]
    values += [("power", one) for one in (0.0, -1.0, 17.0, np.nan, "1", None)]
    for name, given in values:
        with pytest.raises(BudgetError, match=f"{name} is {given!r}"):
            policy_for("random", L, H, B, W, **{name: given})
    with pytest.raises(BudgetError, match="adapt is None"):
        policy_for("sparsemm-adaptive", L, H, B, W, scores=np.ones((L, H)), adapt=None)


def test_a_policy_of_many_prompts_stays_small():
    policy = policy_for("sparsemm", L, H, B, W, scores=np.ones((L, H)))
    for length in range(2000):
        policy.matrix(length)
    assert len(policy._seen) <= 256
    assert policy.matrix(20) is policy.matrix(20)


@pytest.mark.parametrize("method", ["sparsemm", "random", "sparsemm-adaptive"])
def test_a_power_applies_to_the_scores_of_the_whole_model(method):
    scores = np.random.default_rng(0).random((L, H))
    squared = policy_for(method, L, H, B, W, scores=scores, power=2.0)
    own = squared.scores if method == "random" else scores
    plain = policy_for("sparsemm", L, H, B, W, scores=own**2)
    assert (squared.matrix(50) == plain.matrix(50)).all()
    assert (squared.matrix(50) != policy_for("sparsemm", L, H, B, W, scores=own).matrix(50)).any()
    assert "power" not in method_options("headkv") | method_options("duo") | method_options("snapkv")


def test_without_adapting_the_split_is_the_static_one():
    scores, observed = np.arange(1.0, L * H + 1).reshape(L, H), torch.rand(1, H, 50, dtype=torch.float32)
    static = policy_for("sparsemm", L, H, B, W, scores=scores)
    adaptive = policy_for("sparsemm-adaptive", L, H, B, W, scores=scores, adapt=0.0)
    assert all((adaptive.slots(i, [50], observed) == static.slots(i, [50], observed)).all() for i in range(L))


def test_options_are_the_fields_of_a_method_and_its_selector():
    assert method_options("sparsemm") == {"window", "selector", "pooling_kernel", "rho", "power", "mode"}
    assert method_options("streaming") == {"window", "selector", "sinks"}
    assert method_options("random") == {"window", "selector", "pooling_kernel", "rho", "power", "mode", "seed"}
    with pytest.raises(BudgetError, match="snapkv has no option rho.*snapkv has pooling_kernel, selector, window"):
        make_policy("snapkv", B, rho=0.2)
    with pytest.raises(BudgetError, match="did you mean snapkv"):
        make_policy("snapkvs", B)
    every = {"window": 3, "rho": 0.2, "pooling_kernel": 3, "seed": 4}
    assert make_policy_from("snapkv", B, None, every) == SnapKV(budget=B, window=3, selector=WindowAttention(3))


def test_any_selector_goes_with_any_policy():
    scores = np.arange(1.0, L * H + 1).reshape(L, H)
    policy = SparseMM(scores, budget=B, window=W, selector=Recency(sinks=2)).for_model(ModelShape.plain(L, H, H))
    assert (policy.slots(0, [50], None) == policy_for("sparsemm", L, H, B, W, scores).slots(0, [50], None)).all()
    assert policy.selector == make_policy("streaming", B, window=W, sinks=2).selector


def test_a_policy_of_another_shape_is_refused():
    with pytest.raises(BudgetError, match="the policy is for"):
        policy_for("snapkv", L, H, B, W).for_model(ModelShape.plain(L, H, H + 1))
