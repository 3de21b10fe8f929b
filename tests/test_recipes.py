"""Recipes: their file, what they say, and the method "auto"."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from sparsemm.errors import BudgetError, DataError, ScoreTableError
from sparsemm.recipes import Recipe, _log_once, automatic
from sparsemm.scores import ScoreTable
from tests.recipes import recipe

HEADER = {"model": "m", "revision": "r1", "fingerprint": "f", "num_kv_heads": 2}


@pytest.fixture(autouse=True)
def nothing_logged_yet():
    _log_once.cache_clear()


@pytest.fixture
def table():
    samples = np.random.default_rng(0).random((4, 3, 4))
    return ScoreTable.from_samples(samples, np.zeros((3, 4), np.int64), HEADER)


def test_a_recipe_is_read_as_it_was_written(table, tmp_path):
    made = recipe(table)
    for name in ("a.json", "b.json"):
        made.save(tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert Recipe.load(tmp_path / "a.json") == made == table.with_recipe(tmp_path / "a.json").recipe
    text = made.show()
    assert "sparsemm+peak (rho=0.4, window=4)" in text and "read: +0.100 [+0.050, +0.150] against snapkv" in text


@pytest.mark.parametrize("edit", [{"format": 2}, {"scenarios": {"soon": {}}}, {"budgets": None}, {"extra": 1}])
def test_a_file_of_another_format_is_refused(table, tmp_path, edit):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe(table).model_dump(mode="json") | edit))
    with pytest.raises(DataError, match=r"recipe\.json"):
        Recipe.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_broken_file_is_refused(tmp_path, text):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(DataError, match=r"recipe\.json"):
        Recipe.load(tmp_path / "recipe.json")
    with pytest.raises(DataError, match="sparsemm tune"):
        Recipe.load(tmp_path / "none.json")


def test_the_recipe_of_another_table_is_refused(table):
    other = ScoreTable.from_samples(table.per_sample * 2, table.hits, HEADER)
    for wrong in (recipe(other), recipe(table).model_copy(update={"fingerprint": "g"})):
        with pytest.raises(ScoreTableError, match="other scores"):
            table.with_recipe(wrong)


def test_auto_is_the_recipes_method_and_says_so(table, caplog):
    own = table.with_recipe(recipe(table))
    with caplog.at_level(logging.INFO):
        assert automatic(own, "known", {}) == ("sparsemm+peak", {"window": 4, "rho": 0.4})
        assert automatic(own, "later", {"window": 2}) == ("snapkv", {"window": 2})
    assert "auto is sparsemm+peak" in caplog.text and "auto is snapkv" in caplog.text


def test_without_a_recipe_auto_is_the_papers_method_with_a_warning(table, caplog):
    for scores in (table, table.scores):
        caplog.clear()
        assert automatic(scores, "known", {"window": 2}) == ("sparsemm", {"window": 2})
        assert [record.levelname for record in caplog.records] == ["WARNING"] and "no recipe" in caplog.text


def test_every_choice_is_logged_once_however_many_caches_are_made(table, caplog):
    own = table.with_recipe(recipe(table))
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            automatic(own, "known", {})
            automatic(own, "known", {"window": 8})
            automatic(own, "later", {})
            automatic(table, "known", {})
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "INFO", "WARNING"]
    assert len({record.getMessage() for record in caplog.records}) == 4


def test_auto_needs_scores_and_a_scenario_that_exists(table):
    with pytest.raises(BudgetError, match="score table"):
        automatic(None, "known", {})
    with pytest.raises(BudgetError, match="use known or later"):
        automatic(table, "soon", {})
    one = recipe(table)
    one = one.model_copy(update={"scenarios": {"known": one.scenarios["known"]}})
    with pytest.raises(BudgetError, match="no scenario 'later'"):
        one.choice("later")


def test_worse_counts_means_over_budgets_against_snapkv_alone(table):
    assert recipe(table).scenarios["known"].worse() == []
    assert [row.task for row in recipe(table, "worse").scenarios["known"].worse()] == ["all tasks", "read"]
    choice = recipe(table, "worse").scenarios["known"]
    for change in ({"against": "full"}, {"budget": 12}, {"method": "another"}):
        rows = tuple(row.model_copy(update=change) for row in choice.evidence)
        assert choice.model_copy(update={"evidence": rows}).worse() == []
