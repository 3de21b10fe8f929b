"""The search for an allocation and its confirmation: which pages, which slots, what is chosen, what is refused."""

from __future__ import annotations

import json
import shutil

import pytest

from sparsemm.errors import DataError
from sparsemm.params.studies import SearchParams
from sparsemm.policies import get_policy
from sparsemm.scores import ScoreTable
from sparsemm.studies import choice
from sparsemm.studies.candidates import CANDIDATES
from sparsemm.studies.choice import best, mean_areas
from sparsemm.studies.curve import AREA
from sparsemm.studies.names import CHOICE, OVERALL, PAPER
from sparsemm.studies.rows import COLUMNS
from sparsemm.studies.search import split
from sparsemm.studies.stage import run
from tests.studies.crafted import KEY, write_csv


def write_search(root, key, areas=()):
    """A search's overall areas, 0.5 but for those given."""
    areas = dict(areas)
    rows = []
    for name in CANDIDATES:
        row = dict.fromkeys(COLUMNS, "") | {"model": key, "study": "search", "task": OVERALL, "condition": AREA}
        rows.append(row | {"setting": name, "value": areas.get(name, 0.5)})
    write_csv(root / "artifacts" / "studies" / "search" / f"{key}.csv", rows)


@pytest.fixture
def several(made):
    """Params with two models and a declared test model."""
    params, _ = made
    entry = params.model(KEY)
    test = entry.model_copy(update={"note": "a test model"})
    return params.model_copy(update={"models": {"a": entry, "b": entry, "t": test}})


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
        policy = get_policy(one.method, layers, kv, 24, 4, scores=one.weights(table), **one.options())
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
    choice.run(params, root)
    run(params, "confirm", KEY, root)
    found = rows(root, "confirm")
    chosen = best(mean_areas(params, root))
    assert found[0]["task"] == CHOICE and found[0]["setting"] == chosen
    assert {row["setting"] for row in found} == {chosen, PAPER, "snapkv", "full"}
    assert {row["n"] for row in found if row["task"] != CHOICE} == {"1"}
    assert {row["against"] for row in found if row["setting"] == chosen and row["condition"] == AREA} == {
        *{PAPER, "snapkv", "full"} - {chosen}
    }
    said = json.loads((root / "artifacts" / "studies" / "confirm" / f"{KEY}.json").read_text())
    assert chosen in said[CHOICE][f"searched on {KEY}"]
    assert not (root / "artifacts" / "work" / "studies" / "confirm" / KEY).exists()


def test_the_choice_is_the_largest_mean_over_models_that_are_no_test_models(several, tmp_path):
    write_search(tmp_path, "a", {"exponent 0.5": 0.1, "group max": 0.9, "rho 0.4": 0.6})
    write_search(tmp_path, "b", {"group max": 0.2})
    write_search(tmp_path, "t", {"exponent 0.5": 1.0, "margin": 1.0})
    areas = mean_areas(several, tmp_path)
    assert areas["group max"] == pytest.approx(0.55) and best(areas) == "group max"
    write_search(tmp_path, "b")
    write_search(tmp_path, "a", {"overflow lost": 1.0})
    assert best(mean_areas(several, tmp_path)) == PAPER  # ties go to the first; unequal slots are no candidate


def test_searches_that_are_missing_or_of_something_else_are_refused(several, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        mean_areas(several, tmp_path)
    write_search(tmp_path, "a")
    with pytest.raises(DataError, match=r"b\.csv"):
        mean_areas(several, tmp_path)
    folder = tmp_path / "artifacts" / "studies" / "search"
    shutil.copy(folder / "a.csv", folder / "b.csv")
    with pytest.raises(DataError, match="a row of"):
        mean_areas(several, tmp_path)
    (folder / "b.csv").write_text("half")
    with pytest.raises(DataError, match="columns"):
        mean_areas(several, tmp_path)
    write_search(tmp_path, "b")
    lines = (folder / "b.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "b.csv").write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match="not a search over"):
        mean_areas(several, tmp_path)
    only = several.model_copy(update={"models": {"t": several.models["t"]}})
    with pytest.raises(DataError, match="every model is a declared"):
        mean_areas(only, tmp_path)


@pytest.mark.parametrize(
    "content", [None, "{", '{"chosen": "x", "models": [], "areas": {"x": 1.0}}', '{"chosen": "x"}']
)
def test_a_confirmation_without_a_choice_leaves_nothing(made, tmp_path, content):
    params, root = made
    for name in ("datasets", "scores"):
        shutil.copytree(root / "artifacts" / name, tmp_path / "artifacts" / name)
    if content is not None:
        (tmp_path / "artifacts" / "studies").mkdir()
        (tmp_path / choice.FILE).write_text(content)
    with pytest.raises(DataError, match="sparsemm choose"):
        run(params, "confirm", KEY, tmp_path)
    assert not (tmp_path / "artifacts" / "studies" / "confirm").exists()
