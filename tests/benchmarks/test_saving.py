"""What sharing prefills saves: timed both ways, and both ways have to say the same."""

from __future__ import annotations

import pytest

from benchmarks import saving
from sparsemm import allocate
from sparsemm.errors import DataError
from tests.studies.crafted import KEY, begin


@pytest.fixture(scope="module")
def allocated(tmp_path_factory):
    """Two methods, and the budgets of the second."""
    params, root = begin(tmp_path_factory.mktemp("saving"))
    few = params.evaluate.model_copy(update={"methods": ("full", "snapkv"), "max_new_tokens": 4})
    params = params.model_copy(update={"evaluate": few})
    allocate.run(params, KEY, root)
    return params, root


def test_every_method_and_budget_is_timed_both_ways(allocated):
    params, root = allocated
    found = saving.measure(params, KEY, root, samples=2, repeats=1)
    assert found["variants"] == 1 + len(params.allocate.budgets) and found["rows"] == 2
    assert found["ratio"] == pytest.approx(found["separate_seconds"] / found["shared_seconds"], abs=0.01)
    assert found["shared_cpu_seconds"] > 0 and found["device"] and found["versions"]["torch"]


def test_answers_that_differ_are_refused(allocated, monkeypatch):
    def answer(model, batch, variants, most):
        replies = usual(model, batch, variants, most)
        return {name: one._replace(tokens=[[len(variants)]]) for name, one in replies.items()}

    usual = saving.answer
    monkeypatch.setattr(saving, "answer", answer)
    params, root = allocated
    with pytest.raises(DataError, match="not those of separate ones"):
        saving.measure(params, KEY, root, samples=2, repeats=1)
