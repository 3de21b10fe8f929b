"""The candidates of a search and its rounds."""

from __future__ import annotations

import pytest

from sparsemm.params.tune import TuneParams
from sparsemm.tune.candidates import make_candidates, plan_rounds

USUAL = {"window": 4, "rho": 0.1, "power": 1.0}


def given(**values):
    return TuneParams.model_validate({"budgets": (12,), **values})


def test_every_combination_once_and_named_after_what_is_unusual():
    found = make_candidates(
        given(methods=("snapkv", "sparsemm"), selectors=("snapkv", "peak"), rhos=(0.1, 0.4), windows=(4, 8)), USUAL
    )
    names = [one.name for one in found]
    assert len(names) == len(set(names)) == 2 * 2 + 2 * 2 * 2  # snapkv has no rho
    assert names[:4] == ["snapkv", "snapkv, window 8", "snapkv+peak", "snapkv+peak, window 8"]
    last = found[-1]
    assert (last.name, last.method) == ("sparsemm+peak, window 8, rho 0.4", "sparsemm+peak")
    assert last.options == {"window": 8, "rho": 0.4, "power": 1.0} and found[0].options == {"window": 4}


def test_powers_are_tried_with_every_share_and_only_where_there_are_scores():
    every = make_candidates(
        given(methods=("snapkv", "sparsemm"), selectors=("snapkv",), rhos=(0.1, 0.4), powers=(1.0, 0.5)), USUAL
    )
    names = ["snapkv", "sparsemm", "sparsemm, power 0.5", "sparsemm, rho 0.4", "sparsemm, rho 0.4, power 0.5"]
    assert [one.name for one in every] == names and every[-1].options == {"window": 4, "rho": 0.4, "power": 0.5}


@pytest.mark.parametrize(
    ("count", "pages", "first", "rounds"),
    [
        (24, 32, 4, [(24, 0, 4), (12, 4, 8), (6, 8, 16), (3, 16, 32)]),
        (3, 10, 4, [(3, 0, 4), (2, 4, 8)]),  # one is left
        (5, 6, 4, [(5, 0, 4), (3, 4, 6)]),  # the pages are used up
        (2, 3, 8, [(2, 0, 3)]),
        (1, 8, 4, [(1, 0, 4)]),
    ],
)
def test_rounds_halve_the_candidates_and_double_the_pages(count, pages, first, rounds):
    assert plan_rounds(count, pages, first) == rounds
