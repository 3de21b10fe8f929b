"""The gate, threshold by threshold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparsemm.params.registry import GateParams
from sparsemm.registry.gate import Evidence, judge
from sparsemm.scores import ScoreTable
from tests.recipes import recipe

GATE = GateParams.model_validate({})


def table(order=1, noise=0.0, shape=(5, 8)):
    heads = np.linspace(0.0, 1.0, shape[0] * shape[1])[::order].reshape(shape)
    rng = np.random.default_rng(0)
    per_sample = np.abs(heads + noise * rng.standard_normal((4, *shape)))
    header = {"model": "m", "revision": "r1", "fingerprint": "f", "num_kv_heads": 4}
    return ScoreTable.from_samples(per_sample, np.zeros(shape, np.int64), header)


def accuracy(mine=0.9, full=1.0, budgets=("8", "16")):
    return {"read": {"full": {"all": full}, "sparsemm": dict.fromkeys(budgets, mine)}}


def evidence(**values):
    return Evidence(**{"version": "1", "revision": "r1", "table": table(), "accuracy": accuracy(), **values})


def failed(verdict):
    return [reason for reason in verdict.reasons if reason.startswith("FAIL")]


def test_the_first_champion_is_judged_on_its_own_and_the_reasons_say_so():
    verdict = judge(evidence(), None, GATE)
    assert verdict.passed and "no champion yet" in verdict.reasons[-1]
    assert any("split-half correlation 1.0000, must be at least 0.9" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ({"table": table(noise=9.0)}, "split-half"),
        ({"table": table(order=-1)}, "rank correlation with the champion (version 1) -1.0000"),
        ({"table": table(order=-1)}, "overlap of the top 5% with the champion (version 1) 0.0000"),
        ({"table": table(shape=(4, 8))}, "heads of shape (4, 8) cannot be compared"),
        ({"accuracy": accuracy(mine=0.79)}, "must be at least 0.8 x full 1.0000"),
        ({"accuracy": accuracy(mine=0.84)}, "may drop by at most 0.05"),
        ({"accuracy": accuracy(budgets=())}, "budget none"),
        ({"accuracy": {}}, "no accuracy was measured"),
        ({"accuracy": {"read": {"sparsemm": {"16": 1.0}}}}, "full nan"),
        ({"accuracy": accuracy(mine=float("nan"))}, "sparsemm nan"),
    ],
)
def test_every_threshold_can_fail(candidate, reason):
    verdict = judge(evidence(**candidate), evidence(), GATE)
    assert not verdict.passed and any(reason in line for line in failed(verdict)), verdict.reasons


@pytest.mark.parametrize(
    ("verdict", "require", "passed", "line"),
    [
        ("better", True, True, "pass: recipe, scenario known: sparsemm+peak is not shown to be worse than snapkv"),
        ("no difference shown", True, True, "pass: recipe, scenario known"),
        ("worse", False, False, "FAIL: recipe, scenario known: sparsemm+peak in read -0.100 [-0.150, -0.050] against"),
        (None, False, True, "pass: no recipe, so `auto` is the paper's method (a warning)"),
        (None, True, False, "FAIL: no recipe"),
    ],
)
def test_a_recipe_must_not_be_worse_than_snapkv(verdict, require, passed, line):
    gate = GATE.model_copy(update={"require_recipe": require})
    judged = judge(evidence(recipe=verdict and recipe(table(), verdict)), None, gate)
    assert judged.passed == passed and any(reason.startswith(line) for reason in judged.reasons), judged.reasons


def test_a_recipe_that_is_snapkv_itself_is_not_compared_with_it():
    one = recipe(table(), "no difference shown")
    own = one.model_copy(update={"scenarios": {"known": one.scenarios["known"].model_copy(update={"name": "snapkv"})}})
    lines = judge(evidence(recipe=own), None, GATE).reasons
    assert "pass: recipe, scenario known: snapkv, because nothing was shown to be better" in lines


def test_a_drop_of_exactly_the_threshold_passes_and_a_gain_always():
    before = evidence(accuracy=accuracy(mine=0.95))
    assert judge(evidence(accuracy=accuracy(mine=0.9)), before, GATE).passed
    assert judge(evidence(accuracy=accuracy(mine=1.0)), before, GATE).passed


def test_a_constant_table_has_no_rank_correlation_and_fails():
    flat = ScoreTable.from_samples(np.ones((4, 5, 8)), np.zeros((5, 8), np.int64), table().header)
    verdict = judge(evidence(table=flat), evidence(), GATE)
    assert len(failed(verdict)) >= 2 and "nan" in failed(verdict)[0]


def test_another_revision_is_told_and_held_to_the_same_thresholds():
    moved = evidence(revision="r2", table=table(order=-1))
    verdict = judge(moved, evidence(), GATE)
    assert any("checkpoint revision r2" in line for line in verdict.reasons) and not verdict.passed
    assert judge(replace(moved, table=table()), evidence(), GATE).passed


def test_the_reference_budget_is_the_largest_or_the_one_in_params():
    uneven = {"read": {"full": {"all": 1.0}, "sparsemm": {"8": 0.1, "16": 0.9, "100": 0.95}}}
    assert "0.9500 at budget 100" in "".join(judge(evidence(accuracy=uneven), None, GATE).reasons)
    low = GATE.model_copy(update={"reference_budget": 8})
    assert failed(judge(evidence(accuracy=uneven), None, low))
    absent = GATE.model_copy(update={"reference_budget": 12})
    assert failed(judge(evidence(accuracy=uneven), None, absent))


def test_a_champion_that_was_never_evaluated_at_that_budget_is_no_obstacle():
    before = evidence(accuracy={"read": {"full": {"all": 1.0}, "sparsemm": {"4": 1.0}}})
    verdict = judge(evidence(), before, GATE)
    assert verdict.passed and any("was not evaluated at budget 16" in line for line in verdict.reasons)
