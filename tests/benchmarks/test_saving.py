"""What shared work saves: timed in three ways, which have to say the same."""

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


def test_every_method_and_budget_is_timed_in_every_way(allocated):
    params, root = allocated
    found = saving.measure(params, KEY, root, samples=2, repeats=1)
    assert found["variants"] == 1 + len(params.allocate.budgets) and found["rows"] == 2
    for way in ("shared", "together"):
        ratio = found["separate_seconds"] / found[f"{way}_seconds"]
        assert found["separate_over"][way] == pytest.approx(ratio, abs=0.01)
    assert found["shared_cpu_seconds"] > 0 and found["device"] and found["versions"]["torch"]


@pytest.mark.parametrize("way", ["together", "shared"])
def test_answers_that_differ_are_refused(allocated, monkeypatch, way):
    def answer(model, batch, variants, most):
        replies = usual(model, batch, variants, most)
        changed = batch.most_rows > 0 if way == "together" else len(variants) > 1
        return {name: one._replace(tokens=[[changed]]) for name, one in replies.items()}

    usual = saving.answer
    monkeypatch.setattr(saving, "answer", answer)
    params, root = allocated
    with pytest.raises(DataError, match="depend on how methods share their work"):
        saving.measure(params, KEY, root, samples=2, repeats=1)
