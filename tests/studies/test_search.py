"""The search for an allocation and its confirmation: which pages, which slots, what is refused."""

from __future__ import annotations

import shutil

import pytest

from sparsemm.errors import ParamsError
from sparsemm.evaluate.rows import AREA, PAPER
from sparsemm.policies import make_policy_from
from sparsemm.policies.policy import ModelShape
from sparsemm.scores import ScoreTable
from sparsemm.studies.common.allocations import CANDIDATES, SearchParams, split
from sparsemm.studies.common.stage import run
from tests.studies.crafted import KEY


@pytest.mark.parametrize(("samples", "held_out"), [(96, 32), (3, 1), (2, 1), (7, 6)])
def test_no_page_is_searched_and_held_out(samples, held_out):
    pages = list(range(samples))
    first, last = (pages[part] for part in split(SearchParams(samples=samples, held_out=held_out, budgets=(12,))))
    assert first + last == pages and len(last) == held_out and first


@pytest.mark.parametrize("length", [20, 300])
def test_candidates_have_as_many_slots_as_the_paper_but_where_overflow_is_lost(made, length):
    _, root = made
    table = ScoreTable.load(root / "artifacts" / "scores" / f"{KEY}.safetensors")
    layers, kv = len(table.scores), table.header["num_kv_heads"]
    for name, one in CANDIDATES.items():
        policy = make_policy_from(one.method, 24, one.weights(table), {"window": 4} | one.options())
        policy = policy.for_model(ModelShape.plain(layers, kv, kv))
        total = policy.matrix(length).sum()
        assert total == layers * kv * min(24, length) or one.mode == "paper", name


def test_a_search_and_its_confirmation(made, rows):
    params, root = made
    run(params, "search", KEY, root)
    found = rows(root, "search")
    assert {row["setting"] for row in found} == set(CANDIDATES)
    assert {row["n"] for row in found} == {"2"}
    at = {(row["setting"], row["budget"]): row["kept_slots"] for row in found if not row["condition"]}
    exact = [name for name, one in CANDIDATES.items() if one.mode == "exact"]
    assert {at[name, "12"] for name in exact} == {"12.0"} and {at[name, "8"] for name in exact} == {"8.0"}
    assert all(row["against"] == PAPER for row in found if row["setting"] != PAPER)
    run(params, "confirm", KEY, root)
    found = rows(root, "confirm")
    assert {row["setting"] for row in found} == {"rho 0.4", PAPER, "snapkv", "full"}
    assert {row["n"] for row in found} == {"1"}
    against = {row["against"] for row in found if row["setting"] == "rho 0.4" and row["condition"] == AREA}
    assert against == {PAPER, "snapkv", "full"}
    assert not (root / "artifacts" / "work" / "studies" / "confirm" / KEY).exists()


@pytest.mark.parametrize("candidate", ["no such", "overflow lost"])  # the latter keeps fewer slots
def test_what_is_no_candidate_is_refused_and_leaves_nothing(made, tmp_path, candidate):
    params, root = made
    for name in ("datasets", "scores"):
        shutil.copytree(root / "artifacts" / name, tmp_path / "artifacts" / name)
    given = params.model_dump(exclude_unset=True)
    given["studies"]["measured"]["confirm"]["candidate"] = candidate
    with pytest.raises(ParamsError, match=f"'{candidate}' cannot be confirmed.*rho 0.4"):
        run(type(params).model_validate(given), "confirm", KEY, tmp_path)
    assert not (tmp_path / "artifacts" / "studies" / "confirm").exists()
